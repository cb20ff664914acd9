"""Metrics of the user's own: functions of all outputs and targets of a split, in NumPy.

Such a metric need not add up over samples (a rank correlation, an area under a curve), so the outputs
of the whole split are brought together: each worker lays its share into an array of zeros, the arrays
are added up, and worker 0 calls the functions. That takes 8 bytes an output on each worker, so that
the size is limited; the numbers are the same for any number of workers, since the order is the split's.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from modelyard.backends.base import Backend
from modelyard.data.dataset import Split
from modelyard.spec.errors import ModelError, UsageError
from modelyard.spec.work import World

Metrics = Mapping[str, Callable[..., object]]
"""By name: ``(outputs (n, output size) float32, targets (n,)) -> number``."""
MOST_BYTES = 2**31


def check_size(samples: int, output_size: int) -> None:
    """Raises UsageError where the outputs of so many samples are too much to be brought together."""
    if samples * output_size * 8 > MOST_BYTES:
        raise UsageError(
            f"task.metrics needs all outputs at once: {samples} samples x {output_size} numbers are "
            f"{samples * output_size * 8 / 1e9:.1f} GB on each worker, more than {MOST_BYTES / 1e9:.1f} GB",
            "make the validation or test split smaller (data.split), or leave out task.metrics",
        )


def measure_own(
    backend: Backend,
    metrics: Metrics,
    split: Split,
    shares: list[NDArray[np.float32]],
    start: int,
    output_size: int,
    world: World,
) -> dict[str, float]:
    """The metrics' values, the same on every worker; every worker must call it.

    ``shares`` are this worker's outputs batch by batch, of the samples from ``start`` on.
    Raises ModelError where a function raises or gives no finite number.
    """
    outputs = np.concatenate([np.zeros((0, output_size), np.float32), *shares])
    if world.size > 1:
        whole = np.zeros((len(split), output_size), np.float64)
        whole[start : start + len(outputs)] = outputs
        outputs = backend.reduce(whole.reshape(-1)).reshape(whole.shape).astype(np.float32)
    values = np.zeros(len(metrics))
    if world.rank == 0:
        targets = split.targets.take(split.positions, axis=0)
        values[:] = [_value(name, metrics[name], outputs, targets) for name in metrics]
    values = backend.reduce(values)
    return dict(zip(metrics, values.tolist(), strict=True))


def _value(
    name: str,
    function: Callable[..., object],
    outputs: NDArray[np.float32],
    targets: NDArray[np.generic],
) -> float:
    code = getattr(function, "__code__", None)  # an object that is called like one has none
    place = f"{code.co_filename}:{code.co_firstlineno}" if code else type(function).__name__
    try:
        found: object = function(outputs.copy(), targets.copy())
    except Exception as error:  # the user's code may raise anything
        raise ModelError(
            f"the metric {name!r} ({place}) raised {type(error).__name__}: {error}",
            f"mend the function; it is given outputs of shape {outputs.shape} and targets of shape {targets.shape}",
        ) from error
    try:
        value = float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"the metric {name!r} ({place}) gave a {type(found).__name__}, not a number",
            "return one number for the whole split",
        ) from error
    if not math.isfinite(value):
        raise ModelError(
            f"the metric {name!r} ({place}) gave {value}",
            "return a finite number, also where a class is missing or all outputs are alike",
        )
    return value
