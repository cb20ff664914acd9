"""Showing a training while it runs: one live line on a terminal, plain lines elsewhere, or JSON lines.

Each is an observer: called with every event, closed at the end.
"""

import threading
import time
from typing import Any, Protocol, TextIO, assert_never

import msgspec

from modelyard.spec.records import (
    AnyEvent,
    CheckpointSaved,
    Evaluated,
    Noticed,
    Restarted,
    RunFinished,
    RunStarted,
    StepDone,
    WentBack,
    WorkerJoined,
    WorkerLost,
)

_BAR_WIDTH = 16
_SHOWN_METRICS = 2
_MUCH_WAITING = 0.2


class Progress(Protocol):
    """An observer that shows something, until it is closed."""

    def __call__(self, event: AnyEvent) -> None: ...
    def close(self) -> None: ...


def progress_for(stream: TextIO, *, json_lines: bool = False, plain: bool = False) -> Progress:
    """The fitting one for ``stream``: live on a terminal, else one plain line every ten seconds."""
    if json_lines:
        return JsonProgress(stream)
    return TerminalProgress(stream) if stream.isatty() and not plain else PlainProgress(stream)


class JsonProgress:
    """Every event as one line of JSON, for programs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, event: AnyEvent) -> None:
        self._stream.write(msgspec.json.encode(event).decode() + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Nothing is held open."""


class PlainProgress:
    """One plain line per ``interval`` seconds, also where nothing happens, and one for what is not a step."""

    def __init__(self, stream: TextIO, interval: float = 10.0) -> None:
        self._stream = stream
        self._interval = interval
        self._step, self._steps = 0, 0
        self._told = self._heard = time.monotonic()
        self._running = False
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._watch: threading.Thread | None = None

    def __call__(self, event: AnyEvent) -> None:
        with self._lock:
            self._heard = time.monotonic()
            if isinstance(event, RunStarted):
                self._step, self._steps = event.step, event.steps
                self._running = True
                self._begin_watch()
            if isinstance(event, RunFinished):
                self._running = False  # what follows is no training, and tells of itself
            if isinstance(event, StepDone):
                self._step = event.step
                if self._heard - self._told >= self._interval:
                    self._write(_step_line(event, self._steps))
            elif line := describe(event):
                self._write(line)

    def close(self) -> None:
        """End the watch; nothing is written afterwards."""
        self._closed.set()
        if self._watch is not None:
            self._watch.join()

    def _begin_watch(self) -> None:
        if self._watch is None and self._interval > 0:
            self._watch = threading.Thread(target=self._tell_silence, daemon=True)
            self._watch.start()

    def _tell_silence(self) -> None:
        """A slow step, a long evaluation: who reads a log wants to know that it still runs."""
        while not self._closed.wait(self._interval / 4):
            with self._lock:
                now = time.monotonic()
                if self._running and now - self._told >= self._interval:
                    silent = duration(now - self._heard)
                    self._write(f"step {self._step}/{self._steps}: no news for {silent}")

    def _write(self, line: str) -> None:
        self._told = time.monotonic()
        self._stream.write(f"{line}\n")
        self._stream.flush()


class TerminalProgress:
    """One live line with a bar; everything rare is printed above it and stays."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self._console = Console(file=stream, highlight=False)
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=_BAR_WIDTH),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[text]}"),
            console=self._console,
            transient=True,
            refresh_per_second=5,
        )
        self._row: Any = None
        self._validation = ""
        self._workers = 0

    def __call__(self, event: AnyEvent) -> None:
        match event:
            case RunStarted():
                self._start(event)
            case StepDone():
                if self._row is not None:
                    self._bar.update(self._row, completed=event.step, text=self._text(event))
            case Evaluated(split="validation"):
                self._validation = _metrics(event.metrics)
            case WorkerJoined() | CheckpointSaved():
                pass
            case _:
                if isinstance(event, RunFinished):
                    self.close()
                if line := describe(event):
                    self._console.print(f"  {line}", markup=False)

    def close(self) -> None:
        """Take the live line away and give the terminal back as it was."""
        if self._row is not None:
            self._bar.stop()
            self._row = None

    def _start(self, event: RunStarted) -> None:
        self._workers = event.world_size
        if event.step:
            self._console.print(f"  {describe(event)}", markup=False)
        if self._row is None:
            self._row = self._bar.add_task("training", total=event.steps, text="")
            self._bar.start()
        self._bar.update(self._row, completed=event.step)

    def _text(self, event: StepDone) -> str:
        workers = f" · {self._workers} workers" if self._workers > 1 else ""
        validation = f" · validation {self._validation}" if self._validation else ""
        text = (
            f"{duration(event.eta_seconds)} left · epoch {event.epoch:.1f} · loss {event.loss:.4f}{validation} · "
            f"{_rate(event)}{_bottleneck(event)} · lr {event.learning_rate:.1e}{workers}"
            f" · {usage_text(event)}"
        )
        text = text.removesuffix(" · ")
        # On a narrow screen the end of the text gives way, not the bar.
        room = self._console.width - _BAR_WIDTH - len("training  100%  ")
        return text if len(text) <= room else f"{text[: max(room - 1, 0)]}…"


def describe(event: AnyEvent) -> str:
    """One line for people; empty for what is only worth counting."""
    match event:
        case RunStarted():
            begun = f"going on from step {event.step}" if event.step else "training"
            return f"{begun}: {event.steps} steps, {_count(event.world_size, 'worker')}"
        case WorkerJoined():
            return f"worker {event.rank}: process {event.pid} on {event.host}, {event.device}"
        case StepDone():
            return _step_line(event, 0)
        case Evaluated():
            return (
                f"epoch {event.epoch:.1f}: {event.split} {_metrics(event.metrics, everything=True)}"
            )
        case CheckpointSaved():
            return ""
        case WorkerLost():
            return f"lost: {event.reason}"
        case Restarted():
            return f"all workers start again from step {event.step}"
        case WentBack():
            place = f"back to step {event.step}" if event.step else "back to the beginning"
            if event.skipped is None:
                return f"step {event.fault + 1}: {event.reason}; {place}, to see which batch it is"
            return f"step {event.skipped + 1}: {event.reason}; {place}, and on without that step's batch"
        case Noticed():
            return f"note: {event.message}"
        case RunFinished():
            return f"training {event.state} at step {event.step}: {event.reason}"
        case _:
            assert_never(event)


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _step_line(event: StepDone, steps: int) -> str:
    total = f"/{steps}" if steps else ""
    norm = "" if event.gradient_norm is None else f"gradient norm {event.gradient_norm:.3g}, "
    used = usage_text(event, ", ")
    return (
        f"step {event.step}{total}, epoch {event.epoch:.2f}: loss {event.loss:.4f}, "
        f"{norm}learning rate {event.learning_rate:.2e}, {_rate(event)}, "
        f"{duration(event.eta_seconds)} left{', ' if used else ''}{used}"
    )


def usage_text(event: StepDone, between: str = " · ") -> str:
    """``1.2 GB · 1.9 cores busy · GPU 8.1 GB, 97 % busy · 3 % waiting for data``: what is known of it."""
    parts = []
    if event.memory is not None:
        parts.append(size(event.memory))
    if event.cpu is not None:
        parts.append(f"{event.cpu:.1f} cores busy")
    if event.device_memory is not None:
        busy = "" if event.device_use is None else f" {100 * event.device_use:.0f} % busy"
        parts.append(f"GPU {size(event.device_memory)}{busy}")
    if event.data_wait is not None:
        parts.append(f"{100 * event.data_wait:.0f} % waiting for data")
    return between.join(parts)


def size(count: float) -> str:
    """Bytes in the unit that reads best: ``890 MB``, ``1.2 GB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return (
                f"{count / scale:.1f} {unit}"
                if count < 10 * scale
                else f"{count / scale:.0f} {unit}"
            )
    return f"{count / 1e3:.0f} kB"


def _rate(event: StepDone) -> str:
    if event.tokens_per_second is not None:
        return f"{event.tokens_per_second:,.0f} tokens/s"
    return f"{event.samples_per_second:,.0f} samples/s"


def _bottleneck(event: StepDone) -> str:
    """Said early in the line only where it matters: training is slowed down by its data."""
    waits = event.data_wait is not None and event.data_wait >= _MUCH_WAITING
    return f" ({100 * (event.data_wait or 0):.0f} % waiting for data)" if waits else ""


def _metrics(metrics: dict[str, float], *, everything: bool = False) -> str:
    """The loss and the first of the task's own; or all of them."""
    shown = list(metrics.items())[: None if everything else _SHOWN_METRICS]
    return ", ".join(f"{name} {value:.4f}" for name, value in shown)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
