"""The learning-rate finder: a range test by the project's own workers in a scratch store, and what its curve says.

Nothing of it stays: no run, and no word in the project file.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from modelyard.spec.errors import TrainingError, UsageError
from modelyard.spec.project import Project
from modelyard.spec.records import AnyEvent, Dataset, Record, RunFinished, StepDone
from modelyard.store import Store
from modelyard.training.order import Proving
from modelyard.training.range_test import RANGE_TEST, smoothed
from modelyard.training.trial import Enough, try_training

LOW, HIGH, STEPS = 1e-6, 10.0, 100
_FEWEST = 20
_WIDTH, _HEIGHT = 64, 12


class RateCurve(Record, frozen=True, kw_only=True):
    """What a range test saw and what follows from it."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Training loss of the step that was taken with each rate, before it."""
    smooth: tuple[float, ...]
    """The same, smoothed."""
    steepest: float
    """The rate at which the smoothed loss falls most steeply, per decade of the rate."""
    tenth: float
    """A tenth of the rate at which the smoothed loss is lowest."""
    suggestion: float
    """The smaller of the two, which is the safe one: a peak for a training."""
    rose: bool
    """The loss rose again after its lowest: the range was wide enough."""


def find_rate(
    project: Project,
    dataset: Dataset,
    store: Store,
    *,
    low: float = LOW,
    high: float = HIGH,
    steps: int = STEPS,
    on_step: Callable[[int], None] = lambda _: None,
) -> RateCurve:
    """Try ``steps`` learning rates from ``low`` to ``high``, one step each.

    Raises UsageError for a range that is none, TrainingError where the loss falls at no rate, and
    whatever YardError ended a worker.
    """
    if not (0 < low < high < math.inf) or steps < _FEWEST:
        raise UsageError(
            f"learning rates from {low:g} to {high:g} in {steps} steps: that is no range",
            f"0 < low < high, and {_FEWEST} steps or more, e.g. --low 1e-6 --high 10 --steps 100",
        )
    rates = tuple((low * (high / low) ** (np.arange(steps) / (steps - 1))).tolist())
    watch, proving = _Watch(on_step, steps), Proving(watched=False, rates=rates)
    try_training(project, dataset, store, watch, proving=proving, ema=0.0)
    return curve_of(watch.rates, watch.losses, flew_off=watch.flew_off)


class _Watch:
    """An observer of the events."""

    def __init__(self, on_step: Callable[[int], None], steps: int) -> None:
        self._on_step, self._steps = on_step, steps
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.flew_off = False

    def __call__(self, event: AnyEvent) -> None:
        if isinstance(event, StepDone):
            self.rates.append(event.learning_rate)
            self.losses.append(event.loss)
            self._on_step(event.step)
        elif isinstance(event, RunFinished) and event.state == RANGE_TEST:
            self.flew_off = len(self.losses) < self._steps
            raise Enough


def curve_of(rates: Sequence[float], losses: Sequence[float], *, flew_off: bool) -> RateCurve:
    """``flew_off``: before the last rate. Raises TrainingError where the smoothed loss never falls."""
    smooth = smoothed(losses)
    lowest = int(np.argmin(smooth)) if smooth else 0
    if lowest < 2:
        raise TrainingError(
            f"the loss fell at no learning rate from {rates[0] if rates else LOW:g} on",
            "try a smaller --low; where that does not help, look at the data, the labels and the model",
        )
    decades = np.log10(np.array(rates[: lowest + 1]))
    slopes = np.gradient(np.array(smooth[: lowest + 1]), decades)
    steepest, tenth = (
        float(f"{rate:.2g}") for rate in (rates[int(np.argmin(slopes))], rates[lowest] / 10)
    )
    return RateCurve(
        rates=tuple(rates),
        losses=tuple(losses),
        smooth=tuple(smooth),
        steepest=steepest,
        tenth=tenth,
        suggestion=min(steepest, tenth),
        rose=flew_off or smooth[-1] - smooth[lowest] > 0.5 * (smooth[0] - smooth[lowest]),
    )


def as_text(curve: RateCurve, width: int = _WIDTH, height: int = _HEIGHT) -> str:
    """The smoothed loss over the rate (log scale) for a terminal; a column of bars stands at the suggestion."""
    smooth = np.array(curve.smooth)
    top = smooth[0] + 0.25 * (smooth[0] - smooth.min())  # what flies off is cut
    bottom = smooth.min()
    first, last = math.log10(curve.rates[0]), math.log10(curve.rates[-1])

    def column(rate: float) -> int:
        return round((math.log10(rate) - first) / (last - first) * (width - 1))

    cells = [[" "] * width for _ in range(height)]
    for row in cells:
        row[column(curve.suggestion)] = "┊"
    for rate, loss in zip(curve.rates, smooth, strict=True):
        place = (top - min(loss, top)) / max(top - bottom, 1e-12) * (height - 1)
        cells[round(place)][column(rate)] = "•"
    values = [f"{top:.3g}", *[""] * (height - 2), f"{bottom:.3g}"]
    margin = max(map(len, values))
    lines = [
        f"{v:>{margin}} │{''.join(row)}".rstrip() for v, row in zip(values, cells, strict=True)
    ]
    low, high = f"{curve.rates[0]:.0e}", f"{curve.rates[-1]:.0e}"
    axis = f"{low}{'learning rate':^{width - len(low) - len(high)}}{high}"
    return "\n".join([*lines, f"{'':>{margin}} └{'─' * width}", f"{'':>{margin}}  {axis}"])
