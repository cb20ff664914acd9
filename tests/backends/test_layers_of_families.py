"""The same architecture has the same layers in each framework, from the first to the last."""

from pathlib import Path
from typing import Any

import pytest

from modelyard.backends.parameter_rules import layers_of
from modelyard.backends.source import build_model
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import Signature, Tensor

TASK = TaskSpec(type="classification", target="y", loss="cross-entropy", classes=("a", "b", "c"))
SIGNATURE = Signature(
    inputs=(Tensor(name="input", dtype="float32", shape=(None, 3, 16, 16)),),
    outputs=(Tensor(name="scores", dtype="float32", shape=(None, 3)),),
)


def axes_in_pytorch(model: Any) -> dict[str, int]:
    return {name: p.ndim for name, p in model.named_parameters()}


def axes_in_keras(model: Any) -> dict[str, int]:
    from modelyard.backends.keras_model import names_of, tried

    tried(model, SIGNATURE, 3)
    return {name: len(v.shape) for name, v in names_of(model).items() if v.trainable}


def axes_in_jax(model: Any) -> dict[str, int]:
    import jax

    from modelyard.backends.jax_model import functional
    from modelyard.backends.jax_treatment import _used

    found = functional(model, jax.random.key(0))
    return {found.names[k]: len(found.parameters[k].shape) for k in _used(found, SIGNATURE)}


@pytest.mark.parametrize(
    ("framework", "axes"),
    [("pytorch", axes_in_pytorch), ("keras", axes_in_keras), ("jax", axes_in_jax)],
)
def test_a_residual_network(framework: str, axes: Any) -> None:
    """A convolution, six blocks (two of them with a shortcut of their own), a dense layer; norms with their layer."""
    pytest.importorskip({"pytorch": "torch", "jax": "flax"}.get(framework, framework))
    model = build_model(
        Path(),
        "resnet" if framework == "pytorch" else f"{framework}/resnet",
        {},
        SIGNATURE,
        TASK,
        seed=0,
    )
    sizes = [len(layer) for layer in layers_of(axes(model))]
    assert sizes == [3, 6, 6, 9, 6, 9, 6, 2]
