"""What a training will take, before it is begun: a few real steps are measured, and the rest is arithmetic.

``measure`` runs one worker's share of a step as the worker would: its part of the batch, its threads,
its device. Memory is what the process holds at its highest, so that nothing has to be guessed; the
parts of it are named as far as they are known.
"""

import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from modelyard.backends.base import Backend, Batch, State, StepSettings
from modelyard.backends.base import Estimate as Parts
from modelyard.data.cursor import Cursor
from modelyard.data.dataset import Split
from modelyard.spec.records import Spent
from modelyard.training.budget import Limits, cost_of, money
from modelyard.training.gauge import resident_bytes
from modelyard.training.progress import duration, size

_SECONDS = 1.0
"""How long steps are measured, after one that warms up; at least two of them."""
_EVALUATED = 64


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Of one worker."""

    step_seconds: float
    evaluation_seconds: float
    """Of one sample."""
    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Kept from the forward for the backward pass; or, of a backend that does not count, the rest."""
    process: int
    """The most that the whole process held: framework, data and all."""
    device: int | None = None
    """The most on its GPU."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Of the whole training."""

    steps: int
    seconds: float
    memory: int
    """Of all workers."""
    cost: float | None
    ended: str = ""
    """A budget that will end it before."""


def measure(
    backend: Backend,
    begin: Callable[[], State],
    split: Split,
    cursor: Cursor,
    *,
    workers: int,
    rate: float,
    clip_norm: float | None,
) -> Measured:
    """Begin a training with ``begin`` and do a few of its steps. The state is thrown away."""
    before = _begin_peak()
    state = begin()
    times: list[float] = []
    spent = 0.0
    while len(times) < 3 or spent < _SECONDS:
        began = time.perf_counter()
        inputs, targets = split.stored(cursor.share(len(times), 0, workers))
        batch = Batch(inputs=inputs, targets=targets, global_size=cursor.batch_size)
        settings = StepSettings(learning_rate=rate, seed=len(times), clip_norm=clip_norm)
        state, result = backend.step(state, batch, settings)
        float(result.loss)  # waits until the device is done
        times.append(time.perf_counter() - began)
        spent += times[-1] if len(times) > 1 else 0.0
    peak, (device, _) = _peak(), backend.device_usage()
    parts = backend.estimate(state, batch) or _parts(
        backend, state, device if device is not None else peak - before
    )
    return Measured(
        step_seconds=statistics.median(times[1:]),
        evaluation_seconds=_evaluation_seconds(backend, state, split),
        weights=parts.parameters,
        gradients=parts.gradients,
        optimizer=parts.optimizer,
        activations=parts.activations,
        process=peak,
        device=device,
    )


def _parts(backend: Backend, state: State, grown: int) -> Parts:
    """For a backend that does not count: from what a checkpoint would hold, and what memory has grown."""
    tensors = backend.view(state).tensors
    weights, optimizer = (
        sum(array.nbytes for name, array in tensors.items() if name.startswith(prefix))
        for prefix in ("model.", "optimizer.")
    )
    return Parts(
        parameters=weights,
        gradients=weights,
        optimizer=optimizer,
        activations=max(0, grown - 2 * weights - optimizer),
        step_seconds=0.0,
    )


def estimate(
    measured: Measured,
    *,
    steps: int,
    evaluations: int,
    validation: int,
    test: int,
    workers: int,
    limits: Limits,
) -> Estimate:
    """``validation`` and ``test`` are samples; ``evaluations`` of the first come before the last look."""
    looked_at = validation * (evaluations + 1) + test
    looking = looked_at * measured.evaluation_seconds / workers
    seconds = steps * measured.step_seconds + looking
    whole = Spent(seconds=seconds, worker_seconds=seconds * workers)
    return Estimate(
        steps=steps,
        seconds=seconds,
        memory=measured.process * workers,
        cost=cost_of(whole, limits.price),
        # The last step itself would not be ended by a budget of exactly as many.
        ended=limits.ended_by(steps - 1, whole),
    )


def words(measured: Measured, found: Estimate, workers: int) -> str:
    """``about 3 min 20 s for 1,234 steps of 12 ms; 510 MB: …``."""
    each = " a worker" if workers > 1 else ""
    parts = (
        f"weights {size(measured.weights)}, gradients {size(measured.gradients)}, "
        f"optimizer {size(measured.optimizer)}, activations {size(measured.activations)}"
    )
    memory = f"{size(measured.process)} of memory{each}"
    if measured.device is not None:
        memory += f" and {size(measured.device)} on its GPU"
    cost = "" if found.cost is None else f", cost {money(found.cost)}"
    ended = f"; the {found.ended} will end it before" if found.ended else ""
    return (
        f"about {duration(found.seconds)} for {found.steps:,} steps of "
        f"{1000 * measured.step_seconds:.3g} ms{cost}{ended}; {memory} ({parts})"
    )


def available_bytes() -> int | None:
    """Memory that programs may still take; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines if line.startswith("MemAvailable:"))
    return next((int(words[1]) * 1024 for words in found), None)


def _evaluation_seconds(backend: Backend, state: State, split: Split) -> float:
    inputs, _ = split.stored(np.arange(min(_EVALUATED, len(split))))
    times = []
    for _ in range(2):  # the first warms up
        began = time.perf_counter()
        backend.evaluate(state, inputs)
        times.append(time.perf_counter() - began)
    return times[-1] / max(len(inputs), 1)


def _begin_peak() -> int:
    """Forget the highest memory so far, where the system can; returns what is held now."""
    # Where it cannot (not Linux, or not allowed), the peak of the whole process is taken.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes()


def _peak() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resident_bytes()
    found = (line.split() for line in lines if line.startswith("VmHWM:"))
    return next((int(words[1]) * 1024 for words in found), resident_bytes())
