"""Where the time of a step goes: a clock that gives every moment of a training to one part of the step.

It is for runs of their own beside the timed ones, since looking costs a few microseconds a step. In
ours it is put into the real workers, by the project's model function; what it holds on to is
public: the feed, the backend's ``step``, and PyTorch's forward, backward and all-reduce.
"""

import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTS = ("data", "inputs", "forward", "backward", "exchange", "optimizer", "meeting", "loop")
"""``inputs``: to tensors, on the device, in model form; ``meeting``: with the other workers, four a second,
losses read; ``loop``: all the rest."""


class Laps:
    """What passed since the last call belongs to the part that is named."""

    def __init__(self, warm_up: int) -> None:
        self._warm_up, self._steps, self._last = warm_up, 0, time.perf_counter()
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self._seconds[part] += now - self._last
        self._last = now

    def step(self) -> None:
        """A step is done; those of the warm-up are forgotten."""
        self._steps += 1
        if self._steps == self._warm_up:
            self._seconds = dict.fromkeys(PARTS, 0.0)

    def found(self) -> dict[str, float]:
        """Microseconds a step of each part."""
        counted = max(1, self._steps - self._warm_up)
        return {part: 1e6 * seconds / counted for part, seconds in self._seconds.items()}

    def write(self, path: Path) -> None:
        """For whoever waits for it; the time that this takes belongs to nobody."""
        if self._steps > self._warm_up:
            other = path.with_suffix(".new")
            other.write_text(json.dumps(self.found()))
            other.replace(path)
            self._last = time.perf_counter()


_in_this_worker: list[Laps] = []


def watch_ours(model: Any, path: str, warm_up: int) -> Any:
    """Put a clock into this worker, once; ``model`` is given back. Worker 0 writes what it found to ``path``."""
    if not _in_this_worker:
        _in_this_worker.append(Laps(warm_up))
        _put_clock(_in_this_worker[0], Path(path))
    laps = _in_this_worker[0]
    model.register_forward_pre_hook(lambda *_: laps.lap("inputs"))
    return model


def _put_clock(laps: Laps, path: Path) -> None:
    import torch

    from modelyard.backends.pytorch import PyTorch
    from modelyard.data.feed import Feed
    from modelyard.training.meeting import Meetings

    def write() -> None:
        if os.environ.get("RANK", "0") == "0":
            laps.write(path)

    stepping = [False]

    def begins() -> None:
        stepping[0] = True

    def ends() -> None:
        stepping[0] = False
        laps.step()

    _around(laps, Feed, "take", "loop", "data")
    _around(laps, PyTorch, "step", "loop", "optimizer", first=begins, then=ends)
    _around(laps, Meetings, "hold", "loop", "meeting", then=write)
    _around(laps, torch.Tensor, "backward", "forward", "backward")
    _around_exchange(torch.distributed, laps, stepping)


def _around(
    laps: Laps,
    owner: Any,
    name: str,
    before: str,
    after: str,
    first: Callable[[], None] = lambda: None,
    then: Callable[[], None] = lambda: None,
) -> None:
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def timed(*given: Any, **named: Any) -> Any:
        laps.lap(before)
        first()
        result = inner(*given, **named)
        laps.lap(after)
        then()
        return result

    setattr(owner, name, timed)


def _around_exchange(distributed: Any, laps: Laps, stepping: list[bool]) -> None:
    """The all-reduce of a step, its preparation included; those of a meeting belong to the meeting."""
    all_reduce = distributed.all_reduce

    @functools.wraps(all_reduce)
    def timed(*given: Any, **named: Any) -> Any:
        result = all_reduce(*given, **named)
        if stepping[0]:
            laps.lap("exchange")
        return result

    distributed.all_reduce = timed


def in_words(ours: dict[str, float], bare: dict[str, float]) -> str:
    """Two lines for under a table: the parts of ours and of the bare step, and where the difference is largest."""

    def listed(parts: dict[str, float]) -> str:
        return ", ".join(f"{part} {parts[part]:.0f}" for part in PARTS if parts[part] >= 0.5)

    more = {part: ours[part] - bare[part] for part in PARTS}
    largest = max(more, key=lambda part: more[part])
    return (
        f"µs a step, in a run with timers: ours {sum(ours.values()):.0f}: {listed(ours)}\n"
        f"    bare step of our kind {sum(bare.values()):.0f}: {listed(bare)}\n"
        f"the largest remaining cost: {largest}, {more[largest]:+.0f} µs a step\n"
    )
