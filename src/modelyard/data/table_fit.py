"""What is learnt from a table's training rows, in passes over them: a table of any length, one memory.

Counts, means, standard deviations, smallest and largest values and the frequencies of words are
exact. Medians (they fill missing numbers) and the quantiles of the profile are exact for up to
``EXACT_VALUES`` cells; for larger tables they are those of a seeded sample of rows, ``SAMPLE_VALUES``
cells but at least ``SAMPLE_ROWS`` rows: with 20,000 rows the rank of a median is off by 0.35 %.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from modelyard.data import profile
from modelyard.data.profile import FeatureProfile
from modelyard.data.sources.base import ColumnSchema, natural_order
from modelyard.spec.signature import BooleanColumn, CategoricalColumn, Column, NumericColumn

EXACT_VALUES = 8_000_000
SAMPLE_VALUES = 4_000_000
SAMPLE_ROWS = 20_000
_MAX_CATEGORIES = 1000

Values = Mapping[str, NDArray[np.generic]]
Passes = Callable[[], Iterator[Values]]
"""Each call goes once more over the training rows, chunk by chunk, in order."""


class TableFit:
    """Reads on construction; then gives what each column became and its profile."""

    def __init__(self, schema: Sequence[ColumnSchema], passes: Passes, rows: int) -> None:
        self._schema, self._passes, self._rows = schema, passes, rows
        self._numeric = [column.name for column in schema if column.kind == "numeric"]
        self.exact = rows * len(schema) <= EXACT_VALUES
        """Whether all rows are in memory; the figures are then NumPy's own for whole columns."""
        if self.exact:
            self._whole = _joined([column.name for column in schema], passes())
        else:
            self._count()
            self._spread()

    def columns(self) -> tuple[Column, ...]:
        with np.errstate(over="ignore", invalid="ignore"):  # refused when it is encoded
            return tuple(map(self._column, self._schema))

    def profiles(self) -> tuple[FeatureProfile, ...]:
        if self.exact:
            return tuple(_profile(column, self._whole[column.name]) for column in self._schema)
        edges = {name: self._edges(name) for name in self._numeric}
        inside = {name: np.zeros(len(edge) - 1, dtype=np.int64) for name, edge in edges.items()}
        for chunk in self._passes():
            for name, edge in edges.items():
                present = _present(chunk[name])
                inside[name] += np.histogram(present, bins=edge)[0]
        return tuple(self._long_profile(column, edges, inside) for column in self._schema)

    # --- one pass each ------------------------------------------------------------------------

    def _count(self) -> None:
        """First pass: counts, sums, ends, words, and a sample."""
        chosen = _sample(self._rows, len(self._schema))
        self._totals = {
            column.name: np.zeros(max(2, len(column.words)), dtype=np.int64)
            for column in self._schema
            if column.kind != "numeric"
        }
        self._counts = dict.fromkeys(self._numeric, 0)
        sums = dict.fromkeys(self._numeric, 0.0)
        self._low, self._high = dict.fromkeys(sums, np.inf), dict.fromkeys(sums, -np.inf)
        kept: list[dict[str, NDArray[np.generic]]] = []
        first = 0
        for chunk in self._passes():
            length = len(next(iter(chunk.values())))
            places = chosen[slice(*np.searchsorted(chosen, [first, first + length]))] - first
            kept.append({name: chunk[name][places] for name in self._numeric})
            first += length
            for column in self._schema:
                if column.kind != "numeric":
                    self._totals[column.name] += _frequencies(column, chunk[column.name])
            for name in self._numeric:
                present = _present(chunk[name])
                if len(present):
                    self._counts[name] += len(present)
                    sums[name] += float(present.sum())
                    self._low[name] = min(self._low[name], float(present.min()))
                    self._high[name] = max(self._high[name], float(present.max()))
        self._means = {name: sums[name] / max(1, self._counts[name]) for name in self._numeric}
        self._sample = _joined(self._numeric, kept)

    def _spread(self) -> None:
        """Second pass: standard deviations about the means, which are known now."""
        squares = dict.fromkeys(self._numeric, 0.0)
        with np.errstate(over="ignore", invalid="ignore"):
            for chunk in self._passes():
                for name in self._numeric:
                    squares[name] += float(
                        np.square(_present(chunk[name]) - self._means[name]).sum()
                    )
        self._deviations = {
            name: float(np.sqrt(squares[name] / max(1, self._counts[name])))
            for name in self._numeric
        }

    # --- columns and profiles -----------------------------------------------------------------

    def _column(self, column: ColumnSchema) -> Column:
        name = column.name
        if column.kind != "numeric":
            totals = _frequencies(column, self._whole[name]) if self.exact else self._totals[name]
            return _words(column, totals) if column.kind == "categorical" else _truths(name, totals)
        if not self.exact:
            count, mean, std = self._counts[name], self._means[name], self._deviations[name]
            sampled = _present(self._sample[name])
            median = float(np.median(sampled)) if len(sampled) else mean
        else:
            present = _present(self._whole[name])
            count = len(present)
            mean, std, median = (
                (float(present.mean()), float(present.std()), float(np.median(present)))
                if count
                else (0.0, 1.0, 0.0)
            )
        return NumericColumn(
            name=name,
            fill=median,
            mean=mean,
            std=std if np.isfinite(std) and std > 0 else 1.0,
            indicator=count < self._rows,
        )

    def _edges(self, name: str) -> NDArray[np.float64]:
        """Quantiles of the sample between the true ends."""
        present = _present(self._sample[name])
        if not self._counts[name]:
            return np.array([0.0, 0.0])
        shares = np.linspace(0, 1, profile.BINS + 1)[1:-1]
        inner = np.quantile(present, shares) if len(present) else ()
        edges = np.unique([self._low[name], *inner, self._high[name]])
        return edges if len(edges) > 1 else np.repeat(edges, 2)

    def _long_profile(
        self,
        column: ColumnSchema,
        edges: Mapping[str, NDArray[np.float64]],
        inside: Mapping[str, NDArray[np.int64]],
    ) -> FeatureProfile:
        name = column.name
        if column.kind != "numeric":
            words = column.words if column.kind == "categorical" else ("false", "true")
            return profile.categorical_of(name, self._totals[name], self._rows, words)
        count = self._counts[name]
        return profile.NumericProfile(
            name=name,
            count=count,
            missing=self._rows - count,
            mean=self._means[name],
            std=self._deviations[name],
            min=self._low[name] if count else 0.0,
            max=self._high[name] if count else 0.0,
            edges=tuple(edges[name].tolist()) if count else (),
            counts=tuple(inside[name].tolist()) if count else (),
        )


def _sample(rows: int, columns: int) -> NDArray[np.int64]:
    """Sorted places of a seeded choice of rows."""
    size = min(rows, max(SAMPLE_ROWS, SAMPLE_VALUES // columns))
    generator = np.random.Generator(np.random.Philox(key=np.array([0, rows], dtype=np.uint64)))
    # Drawn with repeats and then made different: choosing without would need all rows in memory.
    return np.unique(generator.integers(0, rows, size))


def _joined(names: Sequence[str], chunks: Iterator[Values] | Sequence[Values]) -> Values:
    parts: dict[str, list[NDArray[np.generic]]] = {name: [] for name in names}
    for chunk in chunks:
        for name in names:
            parts[name].append(chunk[name])
    return {name: np.concatenate(parts[name]) for name in names}


def _present(values: NDArray[np.generic]) -> NDArray[np.float64]:
    numbers = values.astype(np.float64, copy=False)
    return numbers[~np.isnan(numbers)]


def _frequencies(column: ColumnSchema, values: NDArray[np.generic]) -> NDArray[np.int64]:
    """How often each word occurs; for truths how often false and true do."""
    numbers = values.astype(np.float64, copy=False)
    return np.bincount(numbers[numbers >= 0].astype(np.int64), minlength=max(2, len(column.words)))


def _words(column: ColumnSchema, totals: NDArray[np.int64]) -> CategoricalColumn:
    top = np.argsort(-totals[: len(column.words)], kind="stable")[:_MAX_CATEGORIES]
    words = sorted((column.words[i] for i in top if totals[i]), key=natural_order)
    return CategoricalColumn(name=column.name, categories=tuple(words))


def _truths(name: str, totals: NDArray[np.int64]) -> BooleanColumn:
    present = int(totals.sum())
    return BooleanColumn(name=name, fill=float(totals[1] / present) if present else 0.5)


def _profile(column: ColumnSchema, values: NDArray[np.generic]) -> FeatureProfile:
    if column.kind == "numeric":
        return profile.numeric(column.name, values)
    words = column.words if column.kind == "categorical" else ("false", "true")
    totals = _frequencies(column, values)
    return profile.categorical_of(column.name, totals, len(values), words)
