"""What losses are written in, on torch tensors, and the slopes of a loss of the user's own."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn


class TorchOps:
    """The maths of losses, on torch tensors."""

    log_softmax = staticmethod(lambda x: torch.log_softmax(x, dim=-1))
    log_sigmoid = staticmethod(nn.functional.logsigmoid)
    square = staticmethod(torch.square)
    exp = staticmethod(torch.exp)
    absolute = staticmethod(torch.abs)
    minimum = staticmethod(lambda x, limit: torch.clamp(x, max=limit))
    mean_last = staticmethod(lambda x: x.mean(dim=-1))
    reshape = staticmethod(torch.reshape)

    @staticmethod
    def take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        if x.ndim == 2:  # the same numbers, forward and backward, by fewer and quicker kernels
            return -nn.functional.nll_loss(x, index, reduction="none")
        return x.gather(-1, index.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def power(x: torch.Tensor, exponent: float) -> torch.Tensor:
        return torch.pow(x, exponent)

    @staticmethod
    def lookup(values: Sequence[float], index: torch.Tensor) -> torch.Tensor:
        return _table(tuple(values), index.device)[index]


@lru_cache(maxsize=16)
def _table(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Made once: a step has nothing to copy to its device."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)


def differentiate(
    function: Callable[..., Any], outputs: torch.Tensor, targets: torch.Tensor
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """``function(outputs, targets)``, and the slope of its sum by the outputs, if it has one."""
    with torch.enable_grad():
        outputs = outputs.detach().clone().requires_grad_()
        found: torch.Tensor = torch.as_tensor(function(outputs, targets))
        slopes = None
        if found.requires_grad:
            (slopes,) = torch.autograd.grad(found.sum(), outputs, allow_unused=True)
    return found.detach().cpu().numpy(), None if slopes is None else slopes.cpu().numpy()
