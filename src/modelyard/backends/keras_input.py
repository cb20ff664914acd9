"""What a Keras model is given: one tensor, or a dict of the parts of its samples; and does it take that?"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from modelyard.spec.errors import ModelError
from modelyard.spec.signature import ImageInput, NaturalInput, Signature
from modelyard.tasks.parts import Part, row_bytes

Tensor = Any
LAST = (0, 2, 3, 1)
"""Channels first to channels last."""


def tried(model: object, signature: Signature, output_size: int | None) -> bool:
    """One pass on zeros, which also makes the weights of a model that waits for its first input.

    Gives whether the model wants pictures channels last. Raises ModelError for a model
    that does not fit; of whatever output where ``output_size`` is None.
    """
    if not isinstance(model, keras.Model):
        raise ModelError(
            f"the model's function returned a {type(model).__qualname__}, not a keras.Model",
            "return the model itself; layers can be put into a keras.Sequential",
        )
    shapes = {t.name: tuple(size or 1 for size in t.shape[1:]) for t in signature.inputs}
    dtypes = {tensor.name: tensor.dtype for tensor in signature.inputs}
    several = len(shapes) > 1
    name = "image" if several else signature.inputs[0].name
    last = _wants_channels_last(model, shapes.get(name, ()), name if several else "")
    zeros: Any = {name: np.zeros((2, *shape), dtypes[name]) for name, shape in shapes.items()}
    if last:
        zeros[name] = np.transpose(zeros[name], LAST)
    _try(model, zeros if several else zeros[name], _words(shapes), output_size)
    return last


def given_form(signature: Signature, parts: Sequence[Part]) -> tuple[tuple[int, ...], str]:
    """Shape of one sample and dtype of what a step is given: rows of bytes where there are several parts."""
    if parts:
        return (row_bytes(parts),), "uint8"
    first = signature.inputs[0]
    return tuple(size or 1 for size in first.shape[1:]), first.dtype


def tensors_of(rows: Tensor, parts: Sequence[Part]) -> dict[str, Tensor]:
    """Rows of bytes, uint8 (n, bytes) -> the model's inputs by name, inside a program."""
    return {part.name: _taken_out(rows, part) for part in parts}


def turned(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The picture, if there is one, channels last."""
    image = {"image": ops.transpose(named["image"], LAST)} if "image" in named else {}
    return {**named, **image}


def _taken_out(rows: Tensor, part: Part) -> Tensor:
    """Float32, or whole numbers for tokens; JAX counts in 32 bits."""
    dtype = np.dtype(part.dtype)
    values = rows[:, part.start : part.stop]
    if dtype == np.int64:  # the low half comes first, and is all that a token needs
        halves = ops.view(values, "int32")
        values = ops.reshape(halves, (-1, int(np.prod(part.shape)), 2))[:, :, 0]
    elif dtype.itemsize > 1:
        values = ops.view(values, dtype.name)
    values = ops.reshape(values, (-1, *part.shape))
    if part.integers:
        return values if keras.backend.backend() == "jax" else ops.cast(values, "int64")
    values = ops.cast(values, "float32")
    if not part.scale:
        return values
    scale, shift = (
        ops.convert_to_tensor(np.asarray(numbers, np.float32).reshape(-1, 1, 1))
        for numbers in (part.scale, part.shift)
    )
    return values * scale + shift


def _words(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The shapes that a model must take, for messages."""
    if len(shapes) == 1:
        shape = next(iter(shapes.values()))
        order = "channels first or last" if len(shape) == 3 else "batch first"
        return f"an input of shape {(2, *shape)} ({order})"
    named = ", ".join(f"{name} {(2, *shape)}" for name, shape in shapes.items())
    return f"a dict of inputs of shapes {named} (the picture channels first or last)"


def _wants_channels_last(model: Any, shape: tuple[int, ...], name: str) -> bool:
    """What the model itself says; of one that is not built yet, what Keras' setting says.

    ``name``: of the picture, where it is one of several inputs.
    """
    if len(shape) != 3:
        return False
    turned, own = (*shape[1:], shape[0]), getattr(model, "input_shape", None)
    if name:
        own = own.get(name) if isinstance(own, dict) else None
    if isinstance(own, tuple) and len(own) == 4 and shape != turned:
        fits = [
            all(size in (None, wanted) for size, wanted in zip(own[1:], order, strict=True))
            for order in (shape, turned)
        ]
        if fits[0] != fits[1]:
            return fits[1]
    return bool(keras.config.image_data_format() == "channels_last")


def _try(model: Any, zeros: Any, given: str, output_size: int | None) -> None:
    try:
        outputs = model(zeros, training=False)
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ModelError(
            f"the model cannot take {given}: {type(error).__name__}: {first}",
            "make its keras.Input fit; of pictures (height, width, channels) is as good",
        ) from error
    if output_size is None:
        return
    if isinstance(outputs, list | tuple | dict) or not hasattr(outputs, "shape"):
        raise ModelError(
            f"the model returned a {type(outputs).__qualname__}, not one tensor of shape (2, {output_size})",
            "return only the tensor with the outputs",
        )
    found = tuple(int(size) for size in outputs.shape)
    if found != (2, output_size):
        raise ModelError(
            f"for {given} the model gave shape {found}; "
            f"this task needs float32 of shape (2, {output_size})",
            f"the last layer must have {output_size} output{'s' if output_size != 1 else ''}",
        )


def finishing(spec: NaturalInput | None) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Scale and shift of each channel, (channels, 1, 1), where samples are pictures."""
    if not isinstance(spec, ImageInput):
        return None
    scale, shift = (
        np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (spec.scale, spec.shift)
    )
    return scale, shift
