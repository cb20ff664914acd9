"""LoRA on a JAX model, module or functions: low-rank factors beside each kernel, and the kernels held fixed."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelyard.backends.base import Lora
from modelyard.backends.jax_model import Arrays, Functional
from modelyard.backends.lora import check_also, chosen_layers, matches, said

_A, _B = ".lora_a", ".lora_b"


def with_adapters(model: Functional, lora: Lora, key: jax.Array) -> tuple[Functional, str]:
    """``model`` with adapters and what is trained whole as its parameters; the rest is kept, ``fixed``.

    Each kernel of two axes or more has adapters A (rows, rank) and B (rank, columns), where rows and
    columns are its axes cut in two. B begins as zeros: at first nothing is changed. Raises ModelError
    for patterns that meet nothing.
    """
    check_also(model.names, lora)
    layers = {
        _layer(n): n for n, p in zip(model.names, model.parameters, strict=True) if p.ndim > 1
    }
    chosen = {layers[name] for name in chosen_layers(list(layers), lora)}
    names: list[str] = []
    parameters: Arrays = []
    fixed: list[int] = []
    for place, (name, array) in enumerate(zip(model.names, model.parameters, strict=True)):
        if matches(name, lora.also):
            names.append(name)
            parameters.append(array)
            continue
        fixed.append(place)
        if name in chosen:
            rows, columns = _halves(array.shape)
            bound = 1 / math.sqrt(rows)
            own = jax.random.fold_in(key, place)
            names += [name + _A, name + _B]
            parameters.append(
                jax.random.uniform(own, (rows, lora.rank), array.dtype, -bound, bound)
            )
            parameters.append(jnp.zeros((lora.rank, columns), array.dtype))
    count, scale = len(model.kept), lora.alpha / lora.rank
    places = [model.names[place] for place in fixed]

    def merge(trained: Arrays, kept: Arrays) -> tuple[Arrays, Arrays]:
        given = dict(zip(names, trained, strict=True))
        given |= {
            name: _whole(given, name, base, scale)
            for name, base in zip(places, kept[count:], strict=True)
        }
        return [given[name] for name in model.names], kept[:count]

    def forward(
        trained: Arrays, kept: Arrays, inputs: jax.Array, key: jax.Array | None
    ) -> tuple[Any, Arrays]:
        whole, own = merge(trained, kept)
        outputs, after = model.forward(whole, own, inputs, key)
        return outputs, [*after, *kept[count:]]

    adapted = Functional(
        names=tuple(names),
        parameters=parameters,
        kept_names=model.kept_names,
        kept=[*model.kept, *(model.parameters[place] for place in fixed)],
        forward=forward,
        fixed=len(fixed),
    )
    total = sum(int(np.prod(p.shape)) for p in model.parameters)
    trained = sum(int(np.prod(p.shape)) for p in parameters)
    return replace(adapted, whole=(model.outlined(), merge)), said(len(chosen), trained, total)


def _layer(name: str) -> str:
    """``first.kernel`` is of the layer ``first``; a name without a dot is a layer itself."""
    return name.rpartition(".")[0] or name


def _halves(shape: Sequence[int]) -> tuple[int, int]:
    """Where the axes are cut in two so that the adapters are smallest."""
    cuts = [(math.prod(shape[:at]), math.prod(shape[at:])) for at in range(1, len(shape))]
    return min(cuts, key=sum)


def _whole(given: dict[str, Any], name: str, base: Any, scale: float) -> Any:
    """In the numbers that the step computes in."""
    kind = next(iter(given.values())).dtype
    base = base.astype(kind) if jnp.issubdtype(base.dtype, jnp.floating) else base
    if name + _A not in given:
        return base
    return base + (scale * (given[name + _A] @ given[name + _B])).reshape(base.shape)


def base_digest(model: Functional, kept: Arrays) -> str:
    """Of the fixed weights: an adapter fits only those that it was trained on."""
    digest = hashlib.sha256()
    for array in kept[len(kept) - model.fixed :]:
        held = np.asarray(array)
        digest.update(f"{held.shape} {held.dtype} ".encode())
        digest.update(np.ascontiguousarray(held).reshape(-1).view(np.uint8).data)
    return f"sha256:{digest.hexdigest()}"
