"""How many cores this process may use: what workers, threads, decoders and replicas are counted by."""

import contextlib
import os
import sys
from pathlib import Path


def available_cores() -> int:
    """Cores that this process may use; fewer than the machine has, in a container, by a quota or under taskset."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, quota_of_cores(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))))


def quota_of_cores(own: Path, root: Path) -> int:
    """Whole cores whose time this process's control group and those above it may take (cgroup v2, ``cpu.max``)."""
    most = sys.maxsize
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return most
    place = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if place is None:
        return most
    for folder in (root / place, *(root / place).parents):
        with contextlib.suppress(OSError, ValueError):  # "max", or a group without a quota
            quota, period = map(int, (folder / "cpu.max").read_text().split())
            most = min(most, max(1, -(-quota // period)))
        if folder == root:
            break
    return most
