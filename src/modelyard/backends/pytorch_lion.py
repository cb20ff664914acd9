"""Lion for PyTorch, which has none of its own: Chen et al., NeurIPS 2023, algorithm 2."""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """``p <- p - lr (sign(b1 m + (1 - b1) g) + decay p)``, then ``m <- b2 m + (1 - b2) g``.

    All weights of a group together, by torch's multi-tensor operations. Every operation is element by
    element, so that of a sharded weight each worker moves its own slice.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take the step with the gradients that are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            members = [p for p in group["params"] if p.grad is not None]
            if members:
                self._move(members, group)
        return loss

    def _move(self, members: list[torch.Tensor], group: dict[str, Any]) -> None:
        for member in members:
            if "exp_avg" not in self.state[member]:
                self.state[member]["exp_avg"] = torch.zeros_like(
                    member, memory_format=torch.preserve_format
                )
        weights = [_own(member) for member in members]
        gradients = [_own(member.grad) for member in members if member.grad is not None]
        averages = [_own(self.state[member]["exp_avg"]) for member in members]
        (first, second), rate = group["betas"], group["lr"]
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
        moves = torch._foreach_mul(averages, first)
        torch._foreach_add_(moves, gradients, alpha=1 - first)
        torch._foreach_sign_(moves)
        torch._foreach_add_(weights, moves, alpha=-rate)
        torch._foreach_mul_(averages, second)
        torch._foreach_add_(averages, gradients, alpha=1 - second)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """What this worker holds of it, in the same memory."""
    held: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return held
