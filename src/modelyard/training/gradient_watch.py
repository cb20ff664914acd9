"""The gradient watch: names the layers whose gradients vanish, explode or never come, from samples that are taken anyway.

What counts, on root mean squares of a tensor's values, at `LOOKS` looks in a row:

- *vanishing*: a gradient less than 1e-4 of the largest one in the model. Through saturated layers it shrinks with
  each of them (Hochreiter 1991; Glorot & Bengio, AISTATS 2010: the layers of a healthy network get gradients of like size).
- *exploding*: a gradient more than ten times its weights (Pascanu, Mikolov & Bengio, ICML 2013). Updates of about a
  thousandth of the weights are healthy (Karpathy, CS231n notes), so plain gradient descent would need a rate of 1e-4.
- *missing*: no gradient at all, or all of it zero.
- *dead units*: nine tenths of a layer's biases get a gradient of exactly zero: ReLUs that no sample of the batch
  turns on (Maas, Hannun & Ng, ICML 2013). Embeddings have no biases, so their unused rows do not count.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOOKS = 3
_VANISHED, _EXPLODED, _DEAD, _FEWEST_UNITS = 1e-4, 10.0, 0.9, 8
_SHOWN = 3
_WEIGHTS, _GRADIENTS = "weights/", "gradients/"


@dataclass(frozen=True)
class Seen:
    """Of one tensor at one look."""

    name: str
    weight: float
    """Root mean square of its values."""
    gradient: float
    """Of its gradient; 0 where there is none."""
    zeros: float
    """Share of its gradient that is exactly zero."""
    count: int
    """Values that were looked at."""

    @property
    def is_bias(self) -> bool:
        return self.name.endswith(("bias", "beta"))


class GradientWatch:
    """Given each look's samples, says once what is wrong with which layers."""

    def __init__(self) -> None:
        self._row: dict[tuple[str, str], int] = {}
        """Kind and tensor to the looks in a row."""
        self._told: set[str] = set()

    def look(self, samples: Mapping[str, NDArray[Any]]) -> list[str]:
        """``weights/<name>`` and ``gradients/<name>`` -> what to tell people now; usually nothing.

        A tensor that has weights but no entry of gradients is not trained, and left out.
        """
        seen = [
            _seen(name.removeprefix(_WEIGHTS), values, samples[gradients])
            for name, values in samples.items()
            if name.startswith(_WEIGHTS)
            and (gradients := _GRADIENTS + name.removeprefix(_WEIGHTS)) in samples
        ]
        kernels = [one for one in seen if not one.is_bias]
        largest = max(kernels, key=lambda one: one.gradient, default=None)
        if largest is None or not np.isfinite(largest.gradient):
            return []
        told = []
        for kind, (is_so, words) in _KINDS.items():
            found = [one for one in seen if is_so(one, largest.gradient)]
            now = {(kind, one.name): self._row.get((kind, one.name), 0) + 1 for one in found}
            self._row = {key: n for key, n in self._row.items() if key[0] != kind} | now
            lasting = [one for one in found if now[kind, one.name] >= LOOKS]
            if lasting and kind not in self._told:
                self._told.add(kind)
                told.append(words(lasting, largest))
        return told


def _seen(name: str, weights: NDArray[Any], gradients: NDArray[Any]) -> Seen:
    return Seen(
        name=name,
        weight=_size(weights),
        gradient=_size(gradients),
        zeros=float(np.mean(gradients == 0)) if gradients.size else 1.0,
        count=gradients.size,
    )


def _size(values: NDArray[Any]) -> float:
    wide = values.astype(np.float64)
    return float(np.sqrt(np.mean(wide * wide))) if values.size else 0.0


def _is_missing(one: Seen, largest: float) -> bool:
    return one.zeros == 1.0 and largest > 0


def _is_dead(one: Seen, largest: float) -> bool:
    return one.is_bias and one.count >= _FEWEST_UNITS and _DEAD <= one.zeros < 1.0 and largest > 0


def _is_vanishing(one: Seen, largest: float) -> bool:
    return not one.is_bias and 0 < one.gradient < _VANISHED * largest


def _is_exploding(one: Seen, largest: float) -> bool:  # noqa: ARG001  the others' look
    return not one.is_bias and one.gradient > _EXPLODED * one.weight > 0


def _named(found: list[Seen], figures: Callable[[Seen], str]) -> str:
    shown = ", ".join(f"{one.name} ({figures(one)})" for one in found[:_SHOWN])
    more = len(found) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _figures(one: Seen) -> str:
    return f"{one.gradient:.1e}, weights {one.weight:.1e}"


def _vanishing(found: list[Seen], largest: Seen) -> str:
    found = sorted(found, key=lambda one: one.gradient)
    return (
        f"gradients vanish in {_named(found, _figures)}; in {largest.name} they are {largest.gradient:.1e} (root mean "
        f"squares, {LOOKS} looks in a row); try ReLU or GELU in place of sigmoid or tanh, a norm between layers, "
        "residual connections, or fewer layers"
    )


def _exploding(found: list[Seen], largest: Seen) -> str:  # noqa: ARG001  the others' words
    found = sorted(found, key=lambda one: -one.gradient / one.weight)
    return (
        f"gradients explode in {_named(found, _figures)} (root mean squares, {LOOKS} looks in a row); try "
        "train.clip_norm = 1.0, smaller initial weights, a norm between layers, or standardised inputs and targets"
    )


def _missing(found: list[Seen], largest: Seen) -> str:  # noqa: ARG001  the others' words
    return (
        f"no gradient reaches {_named(found, lambda one: f'weights {one.weight:.1e}')} ({LOOKS} looks in a row); look "
        "for a part that forward leaves out or detaches, an argmax or rounding on the way, or units that are all dead"
    )


def _dead(found: list[Seen], largest: Seen) -> str:  # noqa: ARG001  the others' words
    return (
        f"dead units: {_named(found, lambda one: f'{100 * one.zeros:.0f} % get no gradient')} ({LOOKS} looks in a "
        "row); try a smaller train.optimizer.lr, leaky ReLU or GELU, or a longer train.schedule.warmup"
    )


_KINDS: dict[
    str, tuple[Callable[[Seen, float], bool], Callable[[list[Seen], Seen], str]]
] = {
    "exploding": (_is_exploding, _exploding),
    "vanishing": (_is_vanishing, _vanishing),
    "missing": (_is_missing, _missing),
    "dead": (_is_dead, _dead),
}  # fmt: skip
