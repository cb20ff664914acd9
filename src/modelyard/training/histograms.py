"""How weights and gradients are spread: taken by worker 0 at evaluations, kept beside the event log.

The backend gives a sample of each tensor's values, so that this costs the same for any model.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelyard.spec.errors import from_os_error
from modelyard.training.gradient_watch import LOOKS, GradientWatch

FILE = "histograms.jsonl"
_BINS = 30
_SECONDS_BETWEEN = 5.0
_FIRST_LOOKS = LOOKS
"""So many at the first evaluations, however soon they come: also a short training should be told what is wrong."""


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """Of one tensor; what is not a finite number is left out."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    total: float
    squares: float


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file: ``weights/<name>`` and ``gradients/<name>`` at one step."""

    time: float
    step: int
    tensors: dict[str, Histogram]


class Sampler:
    """Decides when to look (after the first looks not again within five seconds) and writes down what was seen."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._last, self._looks = float("-inf"), 0
        self._watch = GradientWatch()

    def due(self) -> bool:
        return self._looks < _FIRST_LOOKS or time.monotonic() - self._last >= _SECONDS_BETWEEN

    def write(self, step: int, samples: Mapping[str, NDArray[Any]]) -> list[str]:
        """What the gradient watch has to say to people. Raises StoreError."""
        self._last, self._looks = time.monotonic(), self._looks + 1
        tensors = {name: summarise(values) for name, values in samples.items()}
        spread = Spread(
            time=time.time(),
            step=step,
            tensors={name: found for name, found in tensors.items() if found is not None},
        )
        line = b"\n" + msgspec.json.encode(spread) + b"\n"  # the one before may be torn
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, line)
            finally:
                os.close(handle)
        except OSError as error:
            raise from_os_error(error, self._path) from error
        return self._watch.look(samples)


def summarise(values: NDArray[Any]) -> Histogram | None:
    """Thirty bins between the smallest and the largest value; None where there is nothing to count."""
    flat = np.asarray(values, np.float64).ravel()
    flat = flat[np.isfinite(flat)]
    if not len(flat):
        return None
    low, high = float(flat.min()), float(flat.max())
    if high <= low:
        high = low + max(abs(low) * 1e-6, 1e-12)
    counts, edges = np.histogram(flat, bins=_BINS, range=(low, high))
    return Histogram(
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        total=float(flat.sum()),
        squares=float((flat * flat).sum()),
    )


def read(path: Path, position: int = 0) -> tuple[list[Spread], int]:
    """The whole lines from ``position`` on, and where the next call goes on; torn ones are left out."""
    try:
        with path.open("rb") as file:
            file.seek(position)
            content = file.read()
    except FileNotFoundError:
        return [], position
    whole, newline, _ = content.rpartition(b"\n")
    found = []
    for line in whole.split(b"\n"):
        try:
            found.append(msgspec.json.decode(line, type=Spread))
        except msgspec.DecodeError:
            continue
    return found, position + len(whole) + len(newline)
