"""What a PyTorch model is given: one tensor, or a dict of the parts of its samples."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from modelyard.backends.pytorch_guests import Guest
from modelyard.spec.signature import Signature
from modelyard.tasks.parts import Part, row_bytes, trial_rows


def input_type(signature: Signature) -> torch.dtype:
    """Of the tensor that the model takes."""
    return torch.int64 if signature.inputs[0].dtype == "int64" else torch.float32


def given_form(signature: Signature, parts: Sequence[Part]) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape of one sample and dtype of what a step is given: rows of bytes where there are several parts."""
    if parts:
        return (row_bytes(parts),), torch.uint8
    return tuple(size or 1 for size in signature.inputs[0].shape[1:]), input_type(signature)


def sample_inputs(
    signature: Signature, parts: Sequence[Part], count: int, device: torch.device
) -> torch.Tensor:
    """Inputs to try a model on: zeros, or of several parts what any model takes."""
    if parts:
        return torch.from_numpy(trial_rows(parts, count)).to(device)
    shape, dtype = given_form(signature, parts)
    return torch.zeros((count, *shape), dtype=dtype, device=device)


def words_of(signature: Signature) -> str:
    """The shapes that a model must take, for messages."""
    shapes = {t.name: (2, *(size or 1 for size in t.shape[1:])) for t in signature.inputs}
    if len(shapes) == 1:
        return f"an input of shape {next(iter(shapes.values()))} (batch first)"
    named = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    return f"a dict of inputs of shapes {named} (batch first)"


def taken_apart(call: nn.Module, model: nn.Module, parts: Sequence[Part]) -> nn.Module:
    """What to call with rows of bytes in place of ``call``, which takes a dict of tensors."""
    if not parts:
        return call
    own_loss = call.own_loss if isinstance(call, Guest) else None

    def forward(rows: torch.Tensor) -> Any:
        return call(tensors_of(rows, parts))

    def loss(rows: torch.Tensor, targets: torch.Tensor) -> Any:
        assert own_loss is not None
        return own_loss(tensors_of(rows, parts), targets)

    return Guest(model, forward, loss if own_loss else None)


def tensors_of(rows: torch.Tensor, parts: Sequence[Part]) -> dict[str, torch.Tensor]:
    """Rows of bytes, uint8 (n, bytes) -> the model's inputs by name: float32, or int64 for tokens."""
    found: dict[str, torch.Tensor] = {}
    for part in parts:
        dtype: torch.dtype = getattr(torch, part.dtype)
        # A copy: bytes in the middle of a row may lie where no float can.
        own = rows[:, part.start : part.stop].clone(memory_format=torch.contiguous_format)
        tensor = own.view(dtype).reshape(rows.shape[0], *part.shape)
        if part.integers:
            found[part.name] = tensor.to(torch.int64)
            continue
        tensor = tensor.to(torch.float32)
        if part.scale:
            scale, shift = (
                torch.tensor(values, device=rows.device).reshape(-1, 1, 1)
                for values in (part.scale, part.shift)
            )
            tensor = tensor * scale + shift
        found[part.name] = tensor
    return found


class Named(nn.Module):
    """A model of several inputs, called with these one after the other: what an export wants."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self._names = model, tuple(names)

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.model(dict(zip(self._names, tensors, strict=True)))
