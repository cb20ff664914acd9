"""Looking at a PyTorch training while it runs: the gradients' norm, and how busy the device is."""

from collections.abc import Sequence

import torch
from torch import nn


def gradient_norm(parameters: Sequence[nn.Parameter]) -> torch.Tensor | None:
    """Of all gradients together, still on the device; None where there are none."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return None
    norm = nn.utils.get_total_norm(gradients)
    # Of sharded parameters it is itself spread over the workers.
    whole: torch.Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


def device_usage(device: torch.device) -> tuple[int | None, float | None]:
    """Peak bytes of this process on ``device``, and the share of the time that it is busy."""
    if device.type != "cuda":
        return None, None
    memory = torch.cuda.max_memory_allocated(device)
    try:
        return memory, torch.cuda.utilization(device) / 100
    except (
        ModuleNotFoundError,
        RuntimeError,
    ):  # without NVIDIA's nvidia-ml-py, or its driver's leave
        return memory, None
