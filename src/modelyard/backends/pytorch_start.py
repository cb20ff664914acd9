"""A PyTorch model before it is trained: its weights by name, and others in their place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parameter import is_lazy

from modelyard.backends.base import Weight
from modelyard.backends.pytorch_guests import is_transformers, take_in
from modelyard.backends.pytorch_input import sample_inputs, taken_apart, words_of
from modelyard.spec.errors import ModelError
from modelyard.spec.signature import Signature
from modelyard.tasks.parts import parts_of


def weights_of(model: object, signature: Signature) -> tuple[Weight, ...]:
    """Parameters and buffers as ``state_dict`` names them; tied ones are one weight with two names."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"the model's function returned a {type(model).__qualname__}, not a torch.nn.Module",
            "return the model itself",
        )
    if any(is_lazy(tensor) for tensor in model.parameters()):
        _make_weights(model, signature)
    names: dict[tuple[Any, ...], list[str]] = {}
    shapes: dict[tuple[Any, ...], tuple[int, ...]] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        key = place if tensor.numel() and tensor.data_ptr() else (name,)
        names.setdefault(key, []).append(name)
        shapes[key] = tuple(tensor.shape)
    return tuple(Weight(names=tuple(found), shape=shapes[key]) for key, found in names.items())


def put_weights(model: object, tensors: Mapping[str, NDArray[Any]]) -> object:
    """Into the model's own tensors, in the dtypes that these have."""
    assert isinstance(model, nn.Module)  # weights_of has seen it
    own = model.state_dict()
    with torch.no_grad():
        for name, array in tensors.items():
            own[name].copy_(torch.from_numpy(np.array(array)))
    return model


def library_tensors(model: object, folder: Path) -> dict[str, NDArray[Any]] | None:
    """A transformers model's folder as transformers reads it: its files keep names of older releases.

    None for any other model. A tensor of another shape comes as zeros in the file's shape, to be told.
    Raises ModelError where transformers cannot read the folder.
    """
    if not is_transformers(model) or not (folder / "config.json").is_file():
        return None
    own: Any = model
    try:
        read, info = type(own).from_pretrained(
            folder,
            config=own.config,
            ignore_mismatched_sizes=True,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"model.weights: transformers cannot read {folder}: {error}", "get the folder again"
        ) from error
    other = {str(key): tuple(shape) for key, shape, *_ in info["mismatched_keys"]}
    lacking = set(info["missing_keys"])
    found: dict[str, NDArray[Any]] = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        for name, tensor in read.state_dict().items()
        if name not in lacking
    }
    return found | {name: np.zeros(shape, np.float32) for name, shape in other.items()}


def _make_weights(model: nn.Module, signature: Signature) -> None:
    """Lazy layers make theirs when they see an input."""
    parts = parts_of(signature, None)
    try:
        with torch.no_grad():
            call = taken_apart(take_in(model.eval())[0], model, parts)
            call(sample_inputs(signature, parts, 2, torch.device("cpu")))
    except Exception as error:
        raise ModelError(
            f"the model cannot take {words_of(signature)}: {type(error).__name__}: {error}",
            "make its first layers fit that shape",
        ) from error
