"""Clipping of PyTorch gradients, whole or in slices, once the shares of all workers have been added up."""

from collections.abc import Sequence

import torch
from torch import nn

from modelyard.backends.base import StepSettings
from modelyard.backends.pytorch_look import gradient_norm
from modelyard.backends.pytorch_state import local


def clip_gradients(
    parameters: Sequence[nn.Parameter], settings: StepSettings
) -> torch.Tensor | None:
    """Clip in place as ``settings`` say; the norm before, where it is needed or asked for.

    By value: each number by itself (Mikolov, PhD thesis, Brno 2012), so that of a sharded gradient
    each worker clips its slice. By norm: eq. in algorithm 1 of Pascanu et al., ICML 2013.
    """
    norm = None
    if settings.measure_norm and settings.clip_norm is None:
        norm = gradient_norm(parameters)
    if settings.clip_value is not None:
        held = [local(p.grad) for p in parameters if p.grad is not None]
        if held:
            torch._foreach_clamp_min_(held, -settings.clip_value)
            torch._foreach_clamp_max_(held, settings.clip_value)
    if settings.clip_norm is not None:
        norm = nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return norm
