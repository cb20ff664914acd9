"""LoRA on a Keras model: the layers' own (``enable_lora``), and their kernels with it for an export."""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from modelyard.backends.base import Lora
from modelyard.backends.keras_arrays import as_array
from modelyard.backends.lora import check_also, chosen_layers, matches, said
from modelyard.spec.errors import ModelError

Variable = Any


def add_adapters(
    model: Any, layers: list[Any], names: dict[str, Variable], lora: Lora
) -> tuple[str, frozenset[int]]:
    """Freeze the model but for adapters, and what is to be trained whole; what was done, and what is frozen.

    ``names`` are those of its weights, ``layers`` all in it. Raises ModelError for patterns that meet
    nothing and for layers that cannot be adapted.
    """
    check_also(list(names), lora)
    called = {id(variable): name for name, variable in names.items()}
    able: dict[str, Any] = {}
    for layer in layers:
        if callable(getattr(layer, "enable_lora", None)) and layer.built and layer.weights:
            able.setdefault(
                called[id(layer.weights[0])].rpartition("/")[0].replace("/", "."), layer
            )
    chosen = chosen_layers(list(able), lora)
    total = sum(int(np.prod(variable.shape)) for variable in names.values())
    for name, variable in names.items():
        if variable.trainable and not matches(name, lora.also):
            variable.trainable = False
    for name in chosen:
        _enable(able[name], name, lora)
    trained = {id(variable) for variable in model.trainable_variables}
    _refuse_frozen(able, chosen, trained)
    count = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    statistics = {id(v) for layer in layers for v in getattr(layer, "_non_trainable_variables", ())}
    frozen = frozenset(called) - trained - statistics
    return said(len(chosen), count, total), frozen


def _enable(layer: Any, name: str, lora: Lora) -> None:
    try:
        layer.enable_lora(lora.rank, lora_alpha=lora.alpha)
    except (ValueError, NotImplementedError) as error:
        raise ModelError(
            f"the layer {name} cannot be adapted: {error}",
            "leave it out of train.lora.match, or change the layer",
        ) from error


def _refuse_frozen(able: dict[str, Any], chosen: list[str], trained: set[int]) -> None:
    for name in chosen:
        if not any(id(variable) in trained for variable in able[name].weights):
            raise ModelError(
                f"train.lora adapts {name}, which is frozen (trainable = False), or is within a layer that is",
                "leave it trainable: with train.lora all weights are frozen but for the adapters",
            )


def base_digest(names: dict[str, Variable], frozen: frozenset[int]) -> str:
    """Of the frozen weights: an adapter fits only those that it was trained on."""
    digest = hashlib.sha256()
    for name, variable in names.items():
        if id(variable) in frozen:
            array = as_array(variable.value)
            digest.update(f"{name} {array.shape} {array.dtype} ".encode())
            digest.update(np.ascontiguousarray(array).data.cast("B"))
    return f"sha256:{digest.hexdigest()}"


@contextlib.contextmanager
def merged(layers: list[Any]) -> Iterator[None]:
    """Inside, the adapters' share is in the kernels and the layers know of no adapters."""
    before = []
    for layer in layers:
        if getattr(layer, "lora_enabled", False):
            held = "_embeddings" if hasattr(layer, "_embeddings") else "_kernel"
            variable = getattr(layer, held)
            own = as_array(variable.value)
            whole = as_array(getattr(layer, held.removeprefix("_")))
            before.append((layer, variable, own))
            layer.lora_enabled = False
            variable.assign(whole)
    try:
        yield
    finally:
        for layer, variable, own in before:
            variable.assign(own)
            layer.lora_enabled = True
