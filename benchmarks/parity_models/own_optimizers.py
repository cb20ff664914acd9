"""Each framework's own optimizers on the linear problem of ``tests/backends/rules.py``, set to the same rule where they can be."""

from types import ModuleType
from typing import Any

import numpy as np

from modelyard.backends.base import OptimizerSettings

Ends = tuple[Any, Any]
"""Kernel (features, classes) and bias after twenty steps."""
FEATURES, CLASSES = 6, 3


def settings() -> dict[str, OptimizerSettings]:
    """What is compared. Decay only where all frameworks mean the same by it: beside the gradient."""
    return {
        "sgd": OptimizerSettings(name="sgd", momentum=0.0),
        "sgd, momentum": OptimizerSettings(name="sgd", momentum=0.9),
        "sgd, nesterov": OptimizerSettings(name="sgd", momentum=0.9, nesterov=True),
        "adam": OptimizerSettings(name="adam"),
        "adamw": OptimizerSettings(name="adamw", weight_decay=0.1),
        "rmsprop": OptimizerSettings(name="rmsprop"),
        "adagrad": OptimizerSettings(name="adagrad"),
        "lion": OptimizerSettings(name="lion", weight_decay=0.1),
    }


def linear(name: str) -> object:
    """A linear model of the framework's own, for Modelyard to train."""
    if name == "pytorch":
        from torch import nn

        return nn.Linear(FEATURES, CLASSES)
    if name == "keras":
        import keras

        return keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES)])
    from flax import nnx

    return nnx.Linear(FEATURES, CLASSES, rngs=nnx.Rngs(0))


def train(name: str, chosen: OptimizerSettings, rules: ModuleType) -> Ends | None:
    """By the framework alone; None where it has no such optimizer."""
    return {"pytorch": _torch, "keras": _keras, "jax": _optax}[name](chosen, rules)


def _torch(chosen: OptimizerSettings, rules: ModuleType) -> Ends | None:
    import torch

    kernel, bias = (
        torch.tensor(array, dtype=torch.float32, requires_grad=True)
        for array in rules.first_weights()
    )
    groups = [
        {"params": [kernel], "weight_decay": chosen.weight_decay},
        {"params": [bias], "weight_decay": 0.0},
    ]
    rate = rules.RATE
    make = {
        "sgd": lambda: torch.optim.SGD(groups, rate, chosen.momentum, nesterov=chosen.nesterov),
        "adam": lambda: torch.optim.Adam(groups, rate, chosen.betas, chosen.epsilon),
        "adamw": lambda: torch.optim.AdamW(groups, rate, chosen.betas, chosen.epsilon),
        "rmsprop": lambda: torch.optim.RMSprop(groups, rate, chosen.rho, chosen.epsilon),
        "adagrad": lambda: torch.optim.Adagrad(groups, rate, eps=chosen.epsilon),
    }.get(chosen.name)
    if make is None:
        return None
    optimizer = make()
    for x, y in rules.batches():
        outputs = torch.from_numpy(x) @ kernel + bias
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(outputs, torch.from_numpy(y)).backward()
        optimizer.step()
    return kernel.detach().numpy(), bias.detach().numpy()


def _keras(chosen: OptimizerSettings, rules: ModuleType) -> Ends | None:
    """Keras adds epsilon to the squares in rmsprop and adagrad: its square stands for ours."""
    import keras

    (b1, b2), rate, decay = chosen.betas, rules.RATE, chosen.weight_decay or None
    inside = {"epsilon": chosen.epsilon**2}
    kinds = keras.optimizers
    optimizer = {
        "sgd": lambda: kinds.SGD(rate, chosen.momentum, chosen.nesterov),
        "adam": lambda: kinds.Adam(rate, b1, b2, chosen.epsilon),
        "adamw": lambda: kinds.AdamW(rate, decay, b1, b2, chosen.epsilon),
        "rmsprop": lambda: kinds.RMSprop(rate, chosen.rho, **inside),
        "adagrad": lambda: kinds.Adagrad(rate, initial_accumulator_value=0.0, **inside),
        "lion": lambda: kinds.Lion(rate, b1, b2, weight_decay=decay),
    }[chosen.name]()
    if decay:
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    model: Any = linear("keras")
    model.layers[-1].set_weights([array.astype(np.float32) for array in rules.first_weights()])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    for x, y in rules.batches():
        model.train_on_batch(x, y)
    kernel, bias = model.layers[-1].get_weights()
    return kernel, bias


def _optax(chosen: OptimizerSettings, rules: ModuleType) -> Ends | None:
    """Optax adds epsilon to the squares in adagrad: its square stands for ours."""
    import jax
    import jax.numpy as jnp
    import optax

    (b1, b2), rate, decay = chosen.betas, rules.RATE, chosen.weight_decay
    mask = {"kernel": True, "bias": False}
    optimizer = {
        "sgd": lambda: optax.sgd(rate, chosen.momentum or None, chosen.nesterov),
        "adam": lambda: optax.adam(rate, b1, b2, chosen.epsilon),
        "adamw": lambda: optax.adamw(rate, b1, b2, chosen.epsilon, weight_decay=decay, mask=mask),
        "rmsprop": lambda: optax.rmsprop(rate, chosen.rho, chosen.epsilon, eps_in_sqrt=False),
        "adagrad": lambda: optax.adagrad(rate, 0.0, chosen.epsilon**2),
        "lion": lambda: optax.lion(rate, b1, b2, weight_decay=decay, mask=mask),
    }[chosen.name]()
    kernel, bias = (jnp.asarray(array, jnp.float32) for array in rules.first_weights())
    weights = {"kernel": kernel, "bias": bias}
    state = optimizer.init(weights)

    def loss(weights: Any, x: Any, y: Any) -> Any:
        scores = jax.nn.log_softmax(x @ weights["kernel"] + weights["bias"])
        return -jnp.take_along_axis(scores, y[:, None], 1).mean()

    @jax.jit
    def step(weights: Any, state: Any, x: Any, y: Any) -> Any:
        changes, state = optimizer.update(jax.grad(loss)(weights, x, y), state, weights)
        return optax.apply_updates(weights, changes), state

    for x, y in rules.batches():
        weights, state = step(weights, state, x, y)
    return np.asarray(weights["kernel"]), np.asarray(weights["bias"])
