"""In which numbers PyTorch computes, and in which memory order it keeps pictures."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from modelyard.backends.base import Execution
from modelyard.spec.errors import TrainingError

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """Autocast around the forward pass and, for float16, a scale that keeps small gradients from zero."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype: torch.dtype | None = _DTYPES.get(name)
        self._kind = device.type
        self.scaler: torch.amp.GradScaler | None = None
        if name == "float16":
            self.scaler = torch.amp.GradScaler(device.type)

    def forward(self) -> AbstractContextManager[object]:
        """Around the forward pass."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._kind, dtype=self.dtype)

    def numbers(self) -> dict[str, float]:
        """What must be remembered for an exact resume."""
        if self.scaler is None:
            return {}
        kept = self.scaler.state_dict()
        return {"scale": kept["scale"], "growth_tracker": kept["_growth_tracker"]}

    def restore(self, numbers: dict[str, Any]) -> None:
        if self.scaler is not None and "scale" in numbers:
            kept = self.scaler.state_dict()
            kept["scale"] = numbers["scale"]
            kept["_growth_tracker"] = int(numbers["growth_tracker"])
            self.scaler.load_state_dict(kept)


def check_precision(execution: Execution, device: torch.device) -> None:
    """Raises TrainingError for numbers that this device, or sharding, cannot do."""
    if execution.precision == "bfloat16" and not _has_bfloat16(device):
        raise TrainingError(
            f"{device} has no bfloat16", 'set train.precision = "float16" or "float32"'
        )
    if execution.precision == "float16" and execution.parallel == "shard":
        raise TrainingError(
            'train.precision = "float16" does not go with train.parallel = "shard"',
            'use "bfloat16", which needs no scaled gradients, or parallel = "replicate"',
        )


def half_precision(device: torch.device) -> str | None:
    """The two-byte numbers that may be faster here; None where they are only emulated."""
    if device.type == "cuda":
        return "bfloat16" if _has_bfloat16(device) else "float16"
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bfloat16" if has() else None


def _has_bfloat16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def is_convolutional(model: nn.Module) -> bool:
    """Whether its pictures gain from channels-last: two-dimensional convolutions."""
    return any(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in model.modules())


def order_weights(model: nn.Module, *, channels_last: bool) -> None:
    """Lay kernels out so that a pixel's channels are neighbours, or back; values stay the same."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=order)
