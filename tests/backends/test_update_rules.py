"""Every optimizer of every backend takes the steps of its paper, and those of the framework's own."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import rules

sys.path.pop(0)
from modelyard.backends.base import Backend, OptimizerSettings

KINDS = {**rules.SETTINGS, **rules.TREATED}
SETTINGS = pytest.mark.parametrize("kind", rules.SETTINGS)
ALL = pytest.mark.parametrize("kind", KINDS)
OF_KERAS = [
    kind
    for kind, chosen in rules.SETTINGS.items()
    if (chosen.name in ("adamw", "lion") or not chosen.weight_decay) and chosen.epsilon < 1e-6
]
"""Keras' decay is always apart from the gradient, and its epsilon in other places."""
OF_TORCH = [kind for kind, chosen in rules.SETTINGS.items() if chosen.name != "lion"]
"""It has no Lion; optax and Keras have."""
TOLERANCE = {"atol": 2e-5, "rtol": 0}
"""Weights are of size 1 and have moved by 0.1 or more after twenty steps."""


def close(found: tuple[Any, Any], wanted: tuple[Any, Any]) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(mine), np.asarray(theirs), **TOLERANCE)


def check(backend: Callable[[], Backend], model: Callable[[], object], kind: str) -> None:
    """Twenty steps by hand, in one go, and with a fresh start from the state after the tenth."""
    chosen, clip = KINDS[kind], rules.CLIP if kind in rules.TREATED else None
    whole = rules.by_backend(backend(), [model()], chosen, clip)
    wanted = rules.by_hand(chosen, clip)
    close(whole, wanted)
    for mine, theirs, first in zip(whole, wanted, rules.first_weights(), strict=True):
        assert np.array_equal(mine, first) == np.array_equal(theirs, first)  # what is frozen
    again = rules.by_backend(backend(), [model(), model()], chosen, clip)
    assert all(np.array_equal(a, b) for a, b in zip(whole, again, strict=True))


def test_the_rules_move_the_weights_and_differ() -> None:
    """Else equality would say nothing."""
    ends = {kind: rules.by_hand(chosen)[0] for kind, chosen in rules.SETTINGS.items()}
    for kind, kernel in ends.items():
        assert np.abs(kernel - rules.first_weights()[0]).max() > 0.05, kind
        others = [other for name, other in ends.items() if name != kind]
        assert min(np.abs(kernel - other).max() for other in others) > 1e-3, kind


@ALL
def test_pytorch(kind: str) -> None:
    torch = pytest.importorskip("torch")
    from modelyard.backends.pytorch import PyTorch

    check(PyTorch, lambda: torch.nn.Linear(6, 3), kind)


@ALL
def test_jax(kind: str) -> None:
    jax = pytest.importorskip("jax")
    from modelyard.backends.jax import Jax

    def init(key: Any) -> Any:
        return {"kernel": jax.random.normal(key, (6, 3)), "bias": jax.numpy.zeros(3)}

    def apply(weights: Any, x: Any) -> Any:
        return x @ weights["kernel"] + weights["bias"]

    check(Jax, lambda: (init, apply), kind)


@ALL
def test_keras(kind: str) -> None:
    keras = pytest.importorskip("keras")
    from modelyard.backends.keras import Keras

    check(Keras, lambda: keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)]), kind)


@SETTINGS
def test_optax_agrees(kind: str) -> None:
    """JAX users' own optimizers. Adagrad has its epsilon below the root there, which is too small to see."""
    optax = pytest.importorskip("optax")
    import jax

    chosen = rules.SETTINGS[kind]
    optimizer = _of_optax(optax, chosen)
    weights: Any = tuple(w.astype(np.float32) for w in rules.first_weights())
    state = optimizer.init(weights)

    def loss(weights: Any, x: Any, y: Any) -> Any:
        scores = x @ weights[0] + weights[1]
        return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()

    @jax.jit
    def step(weights: Any, state: Any, x: Any, y: Any) -> Any:
        moves, state = optimizer.update(jax.grad(loss)(weights, x, y), state, weights)
        return optax.apply_updates(weights, moves), state

    for x, y in rules.batches():
        weights, state = step(weights, state, x, y)
    close(weights, rules.by_hand(chosen))


def _of_optax(optax: Any, chosen: OptimizerSettings) -> Any:
    kernels = (True, False)
    moving = chosen.momentum or None
    made = {
        "sgd": lambda: optax.sgd(rules.RATE, moving, nesterov=chosen.nesterov),
        "adam": lambda: optax.adam(rules.RATE, *chosen.betas, chosen.epsilon),
        "adamw": lambda: optax.adamw(
            rules.RATE, *chosen.betas, weight_decay=chosen.weight_decay, mask=kernels
        ),
        "rmsprop": lambda: optax.rmsprop(
            rules.RATE, chosen.rho, chosen.epsilon, momentum=moving, eps_in_sqrt=False
        ),
        "adagrad": lambda: optax.adagrad(rules.RATE, 0.0, chosen.epsilon),
        "lion": lambda: optax.lion(
            rules.RATE, *chosen.betas, weight_decay=chosen.weight_decay, mask=kernels
        ),
    }[chosen.name]()
    if chosen.name in ("adamw", "lion") or not chosen.weight_decay:
        return made
    return optax.chain(optax.add_decayed_weights(chosen.weight_decay, kernels), made)


@pytest.mark.parametrize("kind", OF_KERAS)
def test_keras_own_optimizers_agree(kind: str) -> None:
    keras = pytest.importorskip("keras")
    chosen = rules.SETTINGS[kind]
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.set_weights([w.astype(np.float32) for w in rules.first_weights()])
    optimizer = _of_keras(keras, chosen)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    for x, y in rules.batches():
        model.train_on_batch(x, y)
    close(tuple(model.get_weights()), rules.by_hand(chosen))


def _of_keras(keras: Any, chosen: OptimizerSettings) -> Any:
    decay, betas = chosen.weight_decay or None, chosen.betas
    return {
        "sgd": lambda: keras.optimizers.SGD(rules.RATE, chosen.momentum, chosen.nesterov),
        "adam": lambda: keras.optimizers.Adam(rules.RATE, *betas, chosen.epsilon),
        "adamw": lambda: keras.optimizers.AdamW(rules.RATE, decay, *betas, chosen.epsilon),
        "rmsprop": lambda: keras.optimizers.RMSprop(rules.RATE, chosen.rho, chosen.momentum),
        "adagrad": lambda: keras.optimizers.Adagrad(rules.RATE, 0.0, chosen.epsilon),
        "lion": lambda: keras.optimizers.Lion(rules.RATE, *betas, weight_decay=decay),
    }[chosen.name]()


@pytest.mark.parametrize("kind", OF_TORCH)
def test_torch_agrees(kind: str) -> None:
    """Its own classes with their own loops over weights, and no kernel of ours."""
    torch = pytest.importorskip("torch")
    chosen = rules.SETTINGS[kind]
    weights = [torch.tensor(w, requires_grad=True) for w in rules.first_weights()]
    groups = [
        {"params": [weights[0]], "weight_decay": chosen.weight_decay},
        {"params": [weights[1]], "weight_decay": 0.0},
    ]
    moving = {"momentum": chosen.momentum}
    adam = {"betas": chosen.betas, "eps": chosen.epsilon}
    kinds = {
        "sgd": (torch.optim.SGD, {**moving, "nesterov": chosen.nesterov}),
        "adam": (torch.optim.Adam, adam),
        "adamw": (torch.optim.AdamW, adam),
        "rmsprop": (
            torch.optim.RMSprop,
            {**moving, "alpha": chosen.rho, "eps": chosen.epsilon},
        ),
        "adagrad": (torch.optim.Adagrad, {"eps": chosen.epsilon}),
    }
    make, options = kinds[chosen.name]
    optimizer = make(groups, lr=rules.RATE, foreach=False, **options)
    for x, y in rules.batches():
        scores = torch.tensor(x, dtype=torch.float64) @ weights[0] + weights[1]
        torch.nn.functional.cross_entropy(scores, torch.tensor(y)).backward()
        optimizer.step()
        optimizer.zero_grad()
    close(tuple(w.detach() for w in weights), rules.by_hand(chosen))
