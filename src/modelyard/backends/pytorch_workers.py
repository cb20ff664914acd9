"""How PyTorch workers find their device and each other."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
from torch import distributed
from torch._C._distributed_c10d import FileStore, Store, TCPStore

from modelyard.spec.errors import TrainingError
from modelyard.spec.work import World

MEETING_SECONDS = 60.0
"""How long a worker waits for the others at the start."""
_EXCHANGE_SECONDS = 600.0
"""How long one exchange may take; a worker that dies is noticed at once, this is for one that hangs."""


def choose_device(device: str, world: World) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` -> a device; ``auto`` takes GPUs only if each worker gets one.

    Raises TrainingError where a GPU is asked for that is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    if device == "auto":
        device = "cuda" if 0 < here <= gpus else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    place = int(os.environ.get("LOCAL_RANK", world.rank))
    chosen = torch.device(device if ":" in device else f"{device}:{place}")
    if chosen.type != "cuda" or chosen.index >= gpus:
        raise TrainingError(
            f"worker {world.rank} should use {chosen}, but PyTorch sees {gpus} GPUs here",
            'set train.device = "cpu", or use no more train.workers than there are GPUs',
        )
    torch.cuda.set_device(chosen)
    return chosen


@contextlib.contextmanager
def join_workers(world: World, device: torch.device) -> Iterator[None]:
    """Meet the other workers, and leave at the end; with one worker nothing is opened.

    Raises TrainingError naming the workers that did not come in time.
    """
    if world.size == 1:
        yield
        return
    local = world.rendezvous.startswith("file:")
    if local:  # gloo would otherwise look up this machine's name, which may lead nowhere
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    store = _meet(world)
    try:
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=_EXCHANGE_SECONDS),
        )
    except RuntimeError as error:
        raise TrainingError(
            f"worker {world.rank} could not connect to the others: {str(error).splitlines()[0]}",
            "see GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME for the network interface to use",
        ) from error
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _meet(world: World) -> Store:
    """A store that all workers have reached."""
    store = _open_store(world)
    store.set(f"joined/{world.rank}", "1")
    keys = [f"joined/{rank}" for rank in range(world.size)]
    deadline = time.monotonic() + MEETING_SECONDS
    while not store.check(keys):
        if time.monotonic() > deadline:
            absent = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
            raise TrainingError(
                f"worker {world.rank} waited {MEETING_SECONDS:.0f} s at {world.rendezvous}; "
                f"not there: worker {', '.join(absent)} of {world.size}",
                "the logs of those workers say why",
            )
        time.sleep(0.01)
    return store


def _open_store(world: World) -> Store:
    place = urlsplit(world.rendezvous)
    timeout = timedelta(seconds=MEETING_SECONDS)
    try:
        if place.scheme == "file":
            Path(unquote(place.path)).parent.mkdir(parents=True, exist_ok=True)
            store = FileStore(unquote(place.path), world.size)
            store.set_timeout(timeout)
            return store
        if place.scheme == "tcp" and place.hostname and place.port:
            master = world.rank == 0
            return TCPStore(
                place.hostname, place.port, world.size, master, timeout, wait_for_workers=False
            )
    except (RuntimeError, OSError) as error:
        raise TrainingError(
            f"worker {world.rank} could not reach the meeting place {world.rendezvous}: {str(error).splitlines()[0]}",
            "worker 0 must be up, and its address reachable from here",
        ) from error
    raise TrainingError(
        f"{world.rendezvous!r} is no meeting place for {world.size} workers",
        "use file:///path/of/a/new/file or tcp://host:port",
    )


def device_kind(device: torch.device) -> str:
    """Kind and memory: ``NVIDIA H100 80GB HBM3, 79 GiB`` or ``cpu, 24 GiB``."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return f"{found.name}, {round(found.total_memory / 2**30)} GiB"
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system says
        return device.type
    return f"{device.type}, {round(memory / 2**30)} GiB"
