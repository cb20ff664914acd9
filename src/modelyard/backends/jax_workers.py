"""How JAX workers find their device and threads, and where compiled programs are kept."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import jax

from modelyard.spec.errors import ModelError, OutOfMemory, TrainingError, YardError
from modelyard.spec.work import World

_CACHE = "jax_compilation_cache_dir"
_THREADS = "NPROC"
"""XLA makes as many threads as this variable says, when it is first used."""


@contextlib.contextmanager
def at_place(world: World, device: str, threads: int) -> Iterator[Any]:
    """Inside, arrays lie on this worker's device; programs are kept beside the meeting file.

    Threads can be chosen once in a process: before it computes anything.
    """
    before = {
        name: getattr(jax.config, name) for name in (_CACHE, "jax_default_device", *_KEEP_ALL)
    }
    nproc = os.environ.get(_THREADS)
    os.environ[_THREADS] = str(threads)
    try:
        chosen = choose_device(device, world)
        jax.config.update("jax_default_device", chosen)
        place = urlsplit(world.rendezvous)
        if place.scheme == "file" and not before[_CACHE]:
            # What a worker that was lost had compiled, its successor reads: that is most of its start.
            jax.config.update(_CACHE, str(Path(unquote(place.path)).parent / "compiled"))
            for name, value in _KEEP_ALL.items():
                jax.config.update(name, value)
        yield chosen
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        if nproc is None:
            os.environ.pop(_THREADS, None)
        else:
            os.environ[_THREADS] = nproc


_KEEP_ALL: dict[str, Any] = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def choose_device(device: str, world: World) -> Any:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` -> a device; ``auto`` takes GPUs only if each worker gets one.

    Raises TrainingError where a GPU is asked for that is not there.
    """
    if device == "cpu":
        return jax.local_devices(backend="cpu")[0]
    gpus = _gpus()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    if device == "auto" and not 0 < here <= len(gpus):
        return jax.local_devices(backend="cpu")[0]
    place = int(os.environ.get("LOCAL_RANK", world.rank))
    if ":" in device:
        place = int(device.partition(":")[2])
    if place >= len(gpus):
        raise TrainingError(
            f"worker {world.rank} should use cuda:{place}, but JAX sees {len(gpus)} GPUs here",
            'set train.device = "cpu", or use no more train.workers than there are GPUs; '
            "JAX sees GPUs only with `pip install 'jax[cuda12]'`",
        )
    return gpus[place]


def _gpus() -> list[Any]:
    try:
        return list(jax.local_devices(backend="gpu"))
    except RuntimeError:  # this JAX is for CPUs, or there is no GPU
        return []


def device_name(device: Any) -> str:
    return "cpu" if device.platform == "cpu" else f"cuda:{device.local_hardware_id}"


def device_kind(device: Any) -> str:
    """Kind and memory: ``NVIDIA H100 80GB HBM3, 79 GiB`` or ``cpu, 24 GiB``."""
    if device.platform != "cpu":
        limit = (device.memory_stats() or {}).get("bytes_limit", 0)
        return f"{device.device_kind}, {round(limit / 2**30)} GiB"
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system says
        return "cpu"
    return f"cpu, {round(memory / 2**30)} GiB"


def explain(error: Exception, world: World, device: Any) -> YardError:
    """The error to raise in place of JAX's own: memory, or the model itself."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    reason = f"{type(error).__name__}: {lines[0]}"
    if (
        isinstance(error, MemoryError)
        or "RESOURCE_EXHAUSTED" in reason
        or "out of memory" in reason.lower()
    ):
        return OutOfMemory(
            f"out of memory on {device_name(device)} (worker {world.rank}): {reason}",
            "use a smaller train.batch_size or train.micro_batch, more train.workers or a smaller model",
            device_kind(device),
        )
    return ModelError(
        f"the model raised {reason}", "run `yard check`, which tries the model on a real batch"
    )
