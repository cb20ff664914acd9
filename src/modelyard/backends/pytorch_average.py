"""The moving average of a PyTorch model's weights; of sharded ones each worker keeps its own slices'."""

from typing import Any

import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import nn

from modelyard.backends.average import COUNT, PREFIX, Average, averages_in
from modelyard.backends.base import Part, Snapshot
from modelyard.backends.pytorch_state import local, part_of, slice_of


class TorchAverage(Average):
    """Exchanged in place, so that whoever holds on to the parameters (a recording, a wrapper) sees it."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(decay, self._into, self._swap)
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._sharded: list[Any] = [m for m in model.modules() if hasattr(m, "reshard")]
        self._held = [local(p).detach().clone() for p in self._named.values()]

    def into(self, snapshot: Snapshot, *, copy: bool) -> Snapshot:
        """``snapshot``, made with the trained weights in place, with ``ema.*`` in it."""
        tensors: dict[str, NDArray[Any]] = {}
        parts: dict[str, Part] = {}
        for (name, parameter), held in zip(self._named.items(), self._held, strict=True):
            array = held.cpu().numpy()
            tensors[PREFIX + name] = array.copy() if copy else array
            if (part := part_of(parameter)) is not None:
                parts[PREFIX + name] = part
        return replace(
            snapshot,
            tensors={**snapshot.tensors, **tensors},
            numbers={**snapshot.numbers, COUNT: self.count},
            parts={**snapshot.parts, **parts},
        )

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        found, self.count = averages_in(snapshot, self._named)
        for (name, parameter), held in zip(self._named.items(), self._held, strict=True):
            held.copy_(slice_of(torch.from_numpy(found[name].copy()), parameter))

    @torch.no_grad()
    def _into(self, share: float) -> None:
        torch._foreach_lerp_(self._held, self._weights(), share)

    @torch.no_grad()
    def _swap(self) -> None:
        for module in self._sharded:  # what was gathered of the other weights must go
            module.reshard()
        for weight, held in zip(self._weights(), self._held, strict=True):
            kept = weight.clone()
            weight.copy_(held)
            held.copy_(kept)

    def _weights(self) -> list[torch.Tensor]:
        return [local(p).detach() for p in self._named.values()]
