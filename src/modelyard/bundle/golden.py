"""The golden tensors of a bundle: inputs with the framework's answers, which whoever serves it must give again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.bundle.format import GOLDEN
from modelyard.spec.errors import StoreError
from modelyard.spec.signature import Signature
from modelyard.tasks.parts import by_name, from_names

_DAMAGED = "export it again with `yard up`"


def golden_tensors(
    signature: Signature, inputs: NDArray[Any], outputs: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """What ``golden.safetensors`` holds: ``inputs`` in model form, of several by name, and ``outputs``."""
    named = by_name(signature, inputs)
    several = {f"inputs.{name}": array for name, array in named.items()}
    found = several if len(named) > 1 else {"inputs": inputs}
    return {
        name: np.ascontiguousarray(array) for name, array in (found | {"outputs": outputs}).items()
    }


def golden_of(
    signature: Signature, tensors: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """The way back from ``golden_tensors``. Raises KeyError for what is missing."""
    if len(signature.inputs) == 1:
        return tensors["inputs"], tensors["outputs"]
    named = {tensor.name: tensors[f"inputs.{tensor.name}"] for tensor in signature.inputs}
    return from_names(signature, named), tensors["outputs"]


def close(signature: Signature, some: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """(n,) whether rows in model form are the same up to the rounding of float32."""
    found = np.ones(max(len(some), len(others)), dtype=bool)
    mine, theirs = by_name(signature, some), by_name(signature, others)
    for name, values in mine.items():
        near = np.isclose(values, theirs[name], atol=1e-6)
        found &= near.reshape(len(near), -1).all(axis=1)
    return found


def read_golden(folder: Path, signature: Signature) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """A bundle's golden inputs and outputs. Raises StoreError where they are missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = folder / GOLDEN
    try:
        inputs, outputs = golden_of(signature, load(path.read_bytes()))
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} is damaged: {error}", _DAMAGED) from error
    except KeyError as error:
        raise StoreError(f"{path} is damaged: it holds no {error}", _DAMAGED) from error
    if not len(inputs) or len(inputs) != len(outputs):
        raise StoreError(
            f"{path} is damaged: {len(inputs)} inputs and {len(outputs)} outputs", _DAMAGED
        )
    return inputs, outputs
