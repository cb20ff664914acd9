"""What a training will need, measured on one step: bytes of each kind, and seconds."""

import time
from collections.abc import Callable, Iterable

import torch

from modelyard.backends.base import Estimate
from modelyard.backends.pytorch_begin import TorchState
from modelyard.backends.pytorch_state import local

_STEPS = 3


def estimate(
    state: TorchState, samples: int, forward: Callable[[int], None], step: Callable[[], None]
) -> Estimate:
    """Do a forward pass on one micro-batch of ``samples``, then a few steps with a learning rate of 0."""
    count = min(state.execution.micro_batch or samples, samples)
    kept: dict[int, int] = {}
    own = {local(p).untyped_storage().data_ptr() for p in state.model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = local(tensor).untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward(count)
    step()  # what is made once (optimizer state, kernels) is not timed
    times = []
    for _ in range(_STEPS):
        began = time.perf_counter()
        step()
        if state.parameters[0].device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return Estimate(
        parameters=_size(state.model.parameters()),
        gradients=_size(state.parameters),
        optimizer=_size(
            value for known in state.optimizer.state.values() for value in known.values()
        )
        + (_size(state.parameters) if state.average is not None else 0),
        activations=sum(kept.values()),
        step_seconds=sorted(times)[_STEPS // 2],
    )


def _size(tensors: Iterable[object]) -> int:
    return sum(int(local(t).nbytes) for t in tensors if isinstance(t, torch.Tensor))
