"""How PyTorch workers make one step out of their shares: gradients summed, running statistics averaged.

Four ways: ``Alone``; ``Gathered``, one exchange after the backward pass (on CPUs, where an exchange
beside it would only take its cores); ``Beside``, DDP, during the backward pass (on GPUs); and
``Sharded``, FSDP2, where each worker keeps a slice of weights, gradients and optimizer state.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

# Newer releases of torch renamed the argument and warn about the old name.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


class Alone:
    """One worker: nothing to exchange. Also what the other ways have in common."""

    beside = False
    """The exchange is part of the last backward pass, not of ``finish``."""
    equally_often = False
    """Each pass through the model is an exchange: all workers make the same number of them."""
    factor = 1.0
    """What a worker's loss is multiplied with, where gradients come out as means and not sums."""

    def __init__(self, runner: Callable[..., Any]) -> None:
        self.runner = runner
        """Calls the model for a step."""

    def quiet(self) -> AbstractContextManager[object]:
        """Around a pass through the model whose gradients are only added up here, not yet exchanged."""
        return contextlib.nullcontext()

    def finish(self, share: float) -> None:
        """After the last backward pass; ``share`` is this worker's part of the global batch."""


class Gathered(Alone):
    """All gradients and running statistics in one flat exchange, always in the same order of addition.

    A parameter that no worker's loss depended on keeps no gradient, so that the optimizer leaves it
    alone. Other buffers that forward has changed become those of worker 0.
    """

    def __init__(
        self, runner: Callable[..., Any], model: nn.Module, parameters: Sequence[nn.Parameter]
    ) -> None:
        super().__init__(runner)
        self._parameters, self._statistics = list(parameters), running_statistics(model)
        self._others = other_buffers(model)
        self._versions = [tensor._version for tensor in self._others]
        members = [*self._parameters, *self._statistics]
        flags = len(self._parameters) + 1
        self._flat = members[0].new_zeros(sum(tensor.numel() for tensor in members) + flags)
        views = list(_views(self._flat, members))
        self._gradients = views[: len(self._parameters)]
        self._means = views[len(self._parameters) :]
        self._flags, self._said = self._flat[-flags:], self._flat.new_ones(flags)
        self._said[-1] = 0.0

    @torch.no_grad()
    def finish(self, share: float) -> None:
        found = [parameter.grad for parameter in self._parameters]
        present = [gradient for gradient in found if gradient is not None]
        if len(present) == len(found):
            torch._foreach_copy_(self._gradients, present)
            self._flags.copy_(self._said)
        else:
            self._fill_some(found)
        if self._others:
            self._flags[-1] = float(self._versions != [t._version for t in self._others])
        if self._means:
            torch._foreach_copy_(self._means, self._statistics)
            torch._foreach_mul_(self._means, share)
        distributed.all_reduce(self._flat)
        used = self._flags.tolist() if len(present) < len(found) or self._others else None
        for place, parameter in enumerate(self._parameters):
            parameter.grad = self._gradients[place] if used is None or used[place] else None
        if self._means:
            torch._foreach_copy_(self._statistics, self._means)
        if used is not None and used[-1]:
            for tensor in self._others:
                distributed.broadcast(tensor, 0)
        self._versions = [tensor._version for tensor in self._others]

    def _fill_some(self, found: list[torch.Tensor | None]) -> None:
        for place, gradient in enumerate(found):
            self._flags[place] = float(gradient is not None)
            if gradient is None:
                self._gradients[place].zero_()
            else:
                self._gradients[place].copy_(gradient)
        self._flags[-1] = 0.0


class Beside(Alone):
    """DDP: gradients are exchanged while the backward pass still makes others."""

    beside = True

    def __init__(
        self, runner: nn.Module, model: nn.Module, *, size: int, unused: bool, compiled: bool
    ) -> None:
        settings: dict[str, Any] = {_SYNC_BUFFERS: bool(other_buffers(model))}
        self._wrapped = DistributedDataParallel(
            runner, gradient_as_bucket_view=True, find_unused_parameters=unused, **settings
        )
        # The documented order: what is compiled is cut where buckets end, so that they still overlap.
        super().__init__(torch.compile(self._wrapped, dynamic=False) if compiled else self._wrapped)
        self._statistics, self.factor = running_statistics(model), float(size)

    def quiet(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = self._wrapped.no_sync()
        return context

    def finish(self, share: float) -> None:
        average(self._statistics, share)


class Sharded(Alone):
    """FSDP2; see ``pytorch_shard``."""

    beside = equally_often = True

    def __init__(self, runner: Callable[..., Any], model: Any, *, size: int) -> None:
        super().__init__(runner)
        self._model, self.factor = model, float(size)
        self._statistics = running_statistics(model)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        self._model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._model.set_requires_gradient_sync(True)

    def finish(self, share: float) -> None:
        average(self._statistics, share)


def make_equal(model: nn.Module) -> None:
    """Give every worker the weights and buffers of worker 0."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            whole = tensor.detach().contiguous()
            distributed.broadcast(whole, 0)
            tensor.detach().copy_(whole)


def running_statistics(model: nn.Module) -> list[torch.Tensor]:
    """Means and variances of batch norms that train, which workers must keep equal."""
    training = [norm for norm in _norms(model) if norm.training]
    return [b for norm in training for b in norm.buffers() if b.is_floating_point()]


def other_buffers(model: nn.Module) -> list[torch.Tensor]:
    """All that batch norms do not keep."""
    theirs = {id(buffer) for norm in _norms(model) for buffer in norm.buffers()}
    return [buffer for buffer in model.buffers() if id(buffer) not in theirs]


def _norms(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]


def average(statistics: Sequence[torch.Tensor], share: float) -> None:
    """The mean over workers, weighted by their share of the batch, so that all stay equal.

    A running mean is then exactly what one process would have; a running variance leaves out the
    spread between the workers' means, as in every data-parallel training without synchronised norms.
    """
    if not statistics:
        return
    flat = torch.cat([tensor.flatten() for tensor in statistics]) * share
    distributed.all_reduce(flat)
    sizes = [tensor.numel() for tensor in statistics]
    for tensor, part in zip(statistics, torch.split(flat, sizes), strict=True):
        tensor.copy_(part.view_as(tensor))


def _views(flat: torch.Tensor, members: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Consecutive pieces of ``flat`` with the shapes and memory order of ``members``."""
    start = 0
    for member in members:
        like = torch.empty_like(member, device="meta")
        yield flat.as_strided(like.shape, like.stride(), start)
        start += member.numel()
