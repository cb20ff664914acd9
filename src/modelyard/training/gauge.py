"""What this worker's process uses: read at meetings, never at a step, and added up over all workers."""

import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATUS = Path("/proc/self/statm")


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Of all workers together, since the last meeting."""

    memory: int | None = None
    """Resident bytes; pages that workers share are counted for each."""
    device_memory: int | None = None
    """Peak bytes on GPUs; None where there are none."""
    cpu: float | None = None
    """Processor cores that were kept busy."""
    device_use: float | None = None
    """Share of the time that GPUs were busy, mean over workers; None where it cannot be read."""
    data_wait: float | None = None
    """Share of the time that workers waited for data, mean over workers; None where it is not measured."""


class Gauge:
    """Reads what one worker uses as a row of numbers that may be added up, and reads the sums back."""

    def __init__(
        self,
        device: Callable[[], tuple[int | None, float | None]],
        waited: Callable[[], float] | None = None,
    ) -> None:
        self._device = device
        self._waited = waited
        self._last = self._now()

    def restart(self) -> None:
        """Leave out what was used since the last reading: an evaluation, a checkpoint."""
        self._last = self._now()

    def read(self) -> tuple[float, ...]:
        """One worker's row: to be summed over workers, then given to ``usage``."""
        now = self._now()
        wall, processor, waited = (
            max(new - old, 0.0) for new, old in zip(now, self._last, strict=True)
        )
        self._last = now
        memory, busy = self._device()
        wall = max(wall, 1e-9)
        return (
            1.0,
            float(resident_bytes()),
            processor / wall,
            float(memory or 0),
            float(memory is not None),
            busy or 0.0,
            float(busy is not None),
            min(waited / wall, 1.0),
            float(self._waited is not None),
        )

    def _now(self) -> tuple[float, float, float]:
        return (
            time.perf_counter(),
            time.process_time(),
            self._waited() if self._waited is not None else 0.0,
        )


def usage(sums: Sequence[float]) -> Usage:
    """The rows of all workers, added up, as what they mean."""
    if not sums:
        return Usage()
    _, memory, processor, device, devices, busy, meters, waited, waiters = sums
    return Usage(
        memory=round(memory) or None,
        cpu=processor,
        device_memory=round(device) if devices else None,
        device_use=busy / meters if meters else None,
        data_wait=waited / waiters if waiters else None,
    )


def resident_bytes() -> int:
    """Of this process, now; where the system does not say, the most there ever was."""
    try:
        return int(_STATUS.read_text().split()[1]) * _PAGE
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
