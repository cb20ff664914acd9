"""What went wrong in PyTorch, in words for people: memory, network, or the model itself."""

import torch

from modelyard.backends.pytorch_workers import device_kind
from modelyard.spec.errors import ModelError, OutOfMemory, PeerLost, YardError
from modelyard.spec.work import World

_NO_MEMORY = (
    "can't allocate memory",  # torch's own allocator on the CPU
    "cannot allocate memory",
    "out of memory",
    "bad_alloc",
    "could not create a memory",  # oneDNN
)
_NETWORK = ("gloo", "nccl", "connection", "socket", "timed out")


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, of the CPU's allocator, or of Python and NumPy."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)


def explain(error: RuntimeError | MemoryError, world: World, device: torch.device) -> YardError:
    """The error to raise in its place."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    reason = f"{type(error).__name__}: {lines[0]}"
    if is_out_of_memory(error):
        return OutOfMemory(
            f"out of memory on {device} (worker {world.rank}): {reason}",
            "use a smaller train.batch_size or train.micro_batch, more train.workers or a smaller model",
            device_kind(device),
        )
    if world.size > 1 and _from_network(error):
        return PeerLost(
            f"worker {world.rank} of {world.size} lost another worker: {reason}",
            "the log of the worker that ended first says why",
        )
    return ModelError(
        f"the model raised {reason}", "run `yard check`, which tries the model on a real batch"
    )


def _from_network(error: BaseException) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    text = str(error).lower()
    return any(word in text for word in _NETWORK)
