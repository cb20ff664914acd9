"""What a training will take, before it is begun: a few real steps are measured, and the rest is arithmetic.

Time comes from a rehearsal, the training itself for a few seconds (``rehearsal.py``): a number, and the
range in which it lay while it was watched. Memory comes from ``measure``, which runs one worker's share of a step
as the worker would: its part of the batch, its threads, its device. It is what the process holds at its
highest, so that nothing has to be guessed; the parts of it are named as far as they are known.
"""

import contextlib
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
from modelyard.training.rehearsal import Rehearsed

_STEPS = 3
_EVALUATED = 64
_LEAST_SPREAD = 0.1
"""The range is at least so wide to either side: a machine is never as it was a minute ago."""
_END_SECONDS = 0.5
"""To read the best checkpoint again, publish the result and end the workers."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Of one worker."""

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
    step_seconds: float
    seconds: float
    """Until the result is there, with the start."""
    fewest_seconds: float
    most_seconds: float
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
    for step in range(_STEPS):
        inputs, targets = split.stored(cursor.share(step, 0, workers))
        batch = Batch(inputs=inputs, targets=targets, global_size=cursor.batch_size)
        settings = StepSettings(learning_rate=rate, seed=step, clip_norm=clip_norm)
        state, result = backend.step(state, batch, settings)
        float(result.loss)  # waits until the device is done
    peak, (device, _) = _peak(), backend.device_usage()
    parts = backend.estimate(state, batch) or _parts(
        backend, state, device if device is not None else peak - before
    )
    return Measured(
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
    rehearsed: Rehearsed,
    *,
    steps: int,
    evaluations: int,
    validation: int,
    test: int,
    workers: int,
    limits: Limits,
) -> Estimate:
    """``validation`` and ``test`` are samples; ``evaluations`` of the first come before the last look."""
    each = measured.evaluation_seconds / workers
    if rehearsed.evaluation is not None and validation:
        each = rehearsed.evaluation / validation
    looking = (validation * (evaluations + 1) + test) * each
    still = rehearsed.start + _END_SECONDS

    def whole(step: float, slower: float) -> float:
        return still + slower * (steps * step + looking)

    seconds, fastest, slowest = whole(rehearsed.step, 1), min(rehearsed.steps), max(rehearsed.steps)
    spent = Spent(seconds=seconds, worker_seconds=seconds * workers)
    return Estimate(
        steps=steps,
        step_seconds=rehearsed.step,
        seconds=seconds,
        fewest_seconds=whole(min(fastest, rehearsed.step * (1 - _LEAST_SPREAD)), 1 - _LEAST_SPREAD),
        most_seconds=whole(max(slowest, rehearsed.step * (1 + _LEAST_SPREAD)), 1 + _LEAST_SPREAD),
        memory=measured.process * workers,
        cost=cost_of(spent, limits.price),
        # The last step itself would not be ended by a budget of exactly as many.
        ended=limits.ended_by(steps - 1, spent),
    )


def words(measured: Measured, found: Estimate, workers: int) -> str:
    """``about 3 min 20 s (3 min to 4 min) for 1,234 steps of 12 ms; 510 MB: …``."""
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
        f"about {duration(found.seconds)} ({duration(found.fewest_seconds)} to "
        f"{duration(found.most_seconds)}) for {found.steps:,} steps of "
        f"{1000 * found.step_seconds:.3g} ms{cost}{ended}; {memory} ({parts})"
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
