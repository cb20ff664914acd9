"""PyTorch's optimizers as the project file asks for them, each as one fused kernel."""

import torch
from torch import nn

from modelyard.backends.base import OptimizerSettings
from modelyard.spec.errors import TrainingError


def make_optimizer(
    parameters: tuple[nn.Parameter, ...], settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """Decay only for matrices and kernels: norms and biases have fewer than two axes."""
    decayed = [p for p in parameters if p.ndim >= 2]
    plain = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": members, "weight_decay": decay}
        for members, decay in ((decayed, settings.weight_decay), (plain, 0.0))
        if members
    ]
    match settings.name:
        case "sgd":
            # The fused kernel does not know sharded weights.
            fused = not any(hasattr(parameter, "to_local") for parameter in parameters)
            return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum, fused=fused)
        case "adam":
            for group in groups:
                group["weight_decay"] = 0.0  # as the project file says: adamw and sgd only
            return torch.optim.Adam(groups, lr=0.0, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=0.0, fused=True)
    raise TrainingError(
        f"the pytorch backend has no optimizer {settings.name!r}", "use sgd, adam or adamw"
    )
