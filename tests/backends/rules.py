"""The optimizers as their papers have them, in NumPy float64, and a problem whose gradients are known by hand.

Where a paper and PyTorch write one rule in two ways (Nesterov's momentum, the place of epsilon), it is
PyTorch's, as documented at https://docs.pytorch.org/docs/stable/optim.html.
"""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.backends.base import (
    Backend,
    Batch,
    OptimizerSettings,
    Snapshot,
    StepSettings,
    WeightGroup,
)
from modelyard.spec.optimizers import OPTIMIZERS
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import Signature, Tensor

Array = NDArray[np.float64]
FEATURES, CLASSES, SAMPLES, RATE = 6, 3, 16, 0.02
TASK = TaskSpec(
    type="classification", target="label", loss="cross-entropy", classes=("a", "b", "c")
)
SIGNATURE = Signature(
    inputs=(Tensor(name="input", dtype="float32", shape=(None, FEATURES)),),
    outputs=(Tensor(name="scores", dtype="float32", shape=(None, CLASSES)),),
)
SETTINGS = {
    "sgd plain": OptimizerSettings(name="sgd", momentum=0.0),
    "sgd": OptimizerSettings(name="sgd", weight_decay=0.1),
    "sgd nesterov": OptimizerSettings(name="sgd", nesterov=True, momentum=0.8),
    "adam": OptimizerSettings(name="adam", weight_decay=0.1),
    "adam quick": OptimizerSettings(name="adam", betas=(0.5, 0.9), epsilon=1e-3),
    "adamw": OptimizerSettings(name="adamw", weight_decay=0.1),
    "rmsprop": OptimizerSettings(name="rmsprop", weight_decay=0.1),
    "rmsprop moving": OptimizerSettings(name="rmsprop", rho=0.9, momentum=0.9, epsilon=1e-4),
    "adagrad": OptimizerSettings(name="adagrad", weight_decay=0.1),
    "lion": OptimizerSettings(name="lion", weight_decay=0.1),
}

KERNEL, BIAS = "*[lt]", "*bias"
"""Patterns for both weights, as PyTorch (weight, bias) and the others (kernel, bias) call them."""
GROUPS = (
    WeightGroup(match=BIAS, lr_scale=0.25, weight_decay=0.5),
    WeightGroup(match=KERNEL, lr_scale=2.0, weight_decay=0.3),
)
TREATED = {
    **{
        f"{name} in groups": OptimizerSettings(name=name, weight_decay=0.1, groups=GROUPS)
        for name in OPTIMIZERS
    },
    "no decay": OptimizerSettings(name="sgd", weight_decay=0.1, no_decay=(KERNEL,)),
    "frozen bias": OptimizerSettings(name="adamw", weight_decay=0.1, freeze=(BIAS,)),
    "frozen kernel": OptimizerSettings(name="lion", weight_decay=0.1, freeze=(KERNEL,)),
}
CLIP = 0.03
"""Of each number; about half of those of a first gradient are larger."""


def asked(chosen: OptimizerSettings, axes: int) -> tuple[float, float]:
    """Rate and decay of the kernel (2 axes) or the bias (1), by hand; a rate of 0 for the frozen one."""
    pattern = KERNEL if axes == 2 else BIAS
    if pattern in chosen.freeze:
        return 0.0, 0.0
    decay = 0.0 if axes == 1 or pattern in chosen.no_decay else chosen.weight_decay
    for group in chosen.groups:
        if group.match == pattern:
            assert group.weight_decay is not None
            return RATE * group.lr_scale, group.weight_decay if axes == 2 else 0.0
    return RATE, decay


def rule(chosen: OptimizerSettings, w: Array, g: Array, kept: dict[str, Array], t: int) -> Array:
    """One step of one weight, number ``t`` from 1; ``kept`` is what the rule remembers."""
    zero = np.zeros_like(w)
    (b1, b2), eps, mu = chosen.betas, chosen.epsilon, chosen.momentum
    rate, decay = asked(chosen, w.ndim)
    if chosen.name not in ("adamw", "lion"):
        g = g + decay * w
    match chosen.name:
        case "sgd":  # Sutskever et al., ICML 2013
            v = kept["v"] = mu * kept.get("v", zero) + g
            return w - rate * (g + mu * v if chosen.nesterov else v)
        case (
            "adam" | "adamw"
        ):  # Kingma & Ba, ICLR 2015, algorithm 1; Loshchilov & Hutter, ICLR 2019, algorithm 2
            m = kept["m"] = b1 * kept.get("m", zero) + (1 - b1) * g
            v = kept["v"] = b2 * kept.get("v", zero) + (1 - b2) * g**2
            step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
            return w - rate * (step + (decay * w if chosen.name == "adamw" else 0))
        case (
            "rmsprop"
        ):  # Tieleman & Hinton, lecture 6.5, 2012; its momentum as in Graves, arXiv:1308.0850
            v = kept["v"] = chosen.rho * kept.get("v", zero) + (1 - chosen.rho) * g**2
            b = kept["b"] = mu * kept.get("b", zero) + g / (np.sqrt(v) + eps)
            return w - rate * b
        case "adagrad":  # Duchi, Hazan & Singer, JMLR 12 (2011), the diagonal form
            s = kept["s"] = kept.get("s", zero) + g**2
            return w - rate * g / (np.sqrt(s) + eps)
        case "lion":  # Chen et al., NeurIPS 2023, algorithm 2
            c = b1 * kept.get("m", zero) + (1 - b1) * g
            kept["m"] = b2 * kept.get("m", zero) + (1 - b2) * g
            return w - rate * (np.sign(c) + decay * w)
    raise AssertionError(chosen.name)


def first_weights() -> tuple[Array, Array]:
    """Kernel (features, classes) and bias (classes,), both exact in float32."""
    generator = np.random.default_rng(3)
    kernel = generator.normal(0, 0.5, (FEATURES, CLASSES)).astype(np.float32)
    return kernel.astype(np.float64), np.zeros(CLASSES)


def batches(steps: int = 20) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    for step in range(steps):
        generator = np.random.default_rng(step)
        inputs = generator.normal(0, 1, (SAMPLES, FEATURES)).astype(np.float32)
        yield inputs, generator.integers(0, CLASSES, SAMPLES)


def gradients(kernel: Array, bias: Array, x: Any, y: Any) -> tuple[Array, Array]:
    """Of the mean cross-entropy of a linear model."""
    scores = x.astype(np.float64) @ kernel + bias
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    slopes = shares / shares.sum(axis=1, keepdims=True) - np.eye(CLASSES)[y]
    return x.T.astype(np.float64) @ slopes / len(x), slopes.mean(axis=0)


def by_hand(chosen: OptimizerSettings, clip: float | None = None) -> tuple[Array, Array]:
    """The weights after twenty steps; ``clip``: most that a number of a gradient may be off 0."""
    kernel, bias = first_weights()
    kept: tuple[dict[str, Array], dict[str, Array]] = ({}, {})
    for t, (x, y) in enumerate(batches(), 1):
        found = gradients(kernel, bias, x, y)
        if clip is not None:
            found = np.clip(found[0], -clip, clip), np.clip(found[1], -clip, clip)
        kernel = rule(chosen, kernel, found[0], kept[0], t)
        bias = rule(chosen, bias, found[1], kept[1], t)
    return kernel, bias


def by_backend(
    backend: Backend,
    models: Sequence[object],
    chosen: OptimizerSettings,
    clip: float | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The same with a backend's linear model; the kernel as (features, classes).

    With two models the second one takes over in the middle, from a snapshot.
    """
    state = backend.begin(models[0], TASK, chosen, SIGNATURE)
    state = backend.restore(state, given(backend.snapshot(state)))
    for seed, (x, y) in enumerate(batches()):
        if seed == 10 and len(models) > 1:
            middle = backend.snapshot(state)
            state = backend.begin(models[1], TASK, chosen, SIGNATURE)
            state = backend.restore(state, middle)
        batch = Batch(inputs=x, targets=y, global_size=SAMPLES)
        settings = StepSettings(learning_rate=RATE, seed=seed, clip_value=clip)
        state, _ = backend.step(state, batch, settings)
    tensors = backend.snapshot(state).tensors
    for pattern in chosen.freeze:
        assert not [name for name in tensors if fnmatch(name, f"optimizer.{pattern}.*")]
    ends = [a for n, a in tensors.items() if n.startswith("model.")]
    kernel, bias = sorted(ends, key=lambda array: -array.ndim)
    return (kernel if kernel.shape == (FEATURES, CLASSES) else kernel.T), bias


def given(own: Snapshot) -> Snapshot:
    """``first_weights`` under the names that the backend has for them."""
    kernel, bias = first_weights()
    found = {}
    for name, array in own.tensors.items():
        if name.startswith("model."):
            whole = bias if array.ndim == 1 else kernel
            whole = whole if array.shape == whole.shape else whole.T
            found[name] = np.ascontiguousarray(whole, np.float32)
    return Snapshot(tensors=found, numbers={})
