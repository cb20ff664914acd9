"""Looking at a PyTorch training while it runs: gradients, values, a profiler's trace, the device."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from modelyard.backends.sampled_values import places, stride


def gradient_norm(parameters: Sequence[nn.Parameter]) -> torch.Tensor | None:
    """Of all gradients together, still on the device; None where there are none."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return None
    norm = nn.utils.get_total_norm(gradients)
    # Of sharded parameters it is itself spread over the workers.
    whole: torch.Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


def sampled_values(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Evenly spaced values of weights and gradients, at most 4,096 of each of at most 128 tensors.

    Of a sharded tensor it takes this worker's part: nothing is exchanged.
    """
    named = list(model.named_parameters())
    found: dict[str, NDArray[Any]] = {}
    for place in places(len(named)):
        name, parameter = named[place]
        found[f"weights/{name}"] = _spaced(parameter)
        if parameter.grad is not None:
            found[f"gradients/{name}"] = _spaced(parameter.grad)
        elif parameter.requires_grad:  # it should have one
            found[f"gradients/{name}"] = np.zeros(0, np.float32)
    return found


def _spaced(tensor: torch.Tensor) -> NDArray[Any]:
    local: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    flat = local.detach().reshape(-1)
    spaced = flat[:: stride(flat.numel())]
    values: NDArray[Any] = spaced.to("cpu", torch.float32, copy=True).numpy()
    return values


@contextlib.contextmanager
def profiled(path: Path, device: torch.device) -> Iterator[None]:
    """Trace what happens inside, with shapes, and write it to ``path``."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds, record_shapes=True) as profiler:
        yield
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))


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
