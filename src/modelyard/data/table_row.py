"""Rows of a table become features: parsed cell by cell, then filled, scaled and one-hot by column."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.data.cells import MISSING, PARSERS, spellings
from modelyard.spec.errors import DataError, nearest
from modelyard.spec.signature import BooleanColumn, CategoricalColumn, Column, TableInput

KINDS = {"NumericColumn": "numeric", "CategoricalColumn": "categorical", "BooleanColumn": "boolean"}
EXPECTED = {
    "numeric": "a number, or null where it is missing",
    "boolean": "true or false, or null where it is missing",
    "categorical": "text, or null where it is missing",
}


def kind_of(column: Column) -> str:
    """``numeric``, ``categorical`` or ``boolean``."""
    return KINDS[type(column).__name__]


def encode_rows(spec: TableInput, rows: Sequence[Any]) -> NDArray[np.float32]:
    """Rows ``{column: value}`` -> float32 (n, features). Columns that the model does not use are ignored.

    Raises DataError naming row, column and value.
    """
    features = np.empty((len(rows), *spec.shape), dtype=np.float32)
    _check_columns(spec, rows)
    start = 0
    for column in spec.columns:
        kind = kind_of(column)
        parse = PARSERS[kind]
        parsed = []
        for place, row in enumerate(rows):
            try:
                parsed.append(parse(row[column.name]))
            except ValueError as error:
                raise DataError(
                    f"{_place(place, rows)}column {column.name!r}: {error}",
                    f"{column.name!r} takes {EXPECTED[kind]}",
                ) from error
        features[:, start : start + column.width] = encode_column(column, parsed)
        start += column.width
    check_finite(spec, features)
    return features


def encode_column(column: Column, parsed: Sequence[Any] | NDArray[Any]) -> NDArray[np.float32]:
    """Parsed cells of one column (float64 with NaN, or words with None) -> float32 (n, width)."""
    if isinstance(column, CategoricalColumn):
        return one_hot(column, category_numbers(column, parsed))
    values = np.asarray(parsed, dtype=np.float64)
    missing = np.isnan(values)
    filled = np.where(missing, column.fill, values)
    if isinstance(column, BooleanColumn):
        return filled[:, None].astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by check_finite
        scaled = ((filled - column.mean) / column.std)[:, None].astype(np.float32)
    if not column.indicator:
        return scaled
    return np.concatenate([scaled, missing[:, None].astype(np.float32)], axis=1)


def category_numbers(
    column: CategoricalColumn, words: Sequence[str | None] | NDArray[Any]
) -> NDArray[np.int64]:
    """Words -> their place in ``column.categories``, -1 for a missing or unseen word: int64 (n,)."""
    known = {category: number for number, category in enumerate(column.categories)}
    return np.array([_category_number(known, text) for text in words], dtype=np.int64)


def one_hot(column: CategoricalColumn, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    """Places from ``category_numbers`` -> float32 (n, categories), a row of zeros for -1."""
    features = np.zeros((len(numbers), column.width), dtype=np.float32)
    seen = np.flatnonzero(numbers >= 0)
    features[seen, numbers[seen]] = 1.0
    return features


def check_finite(spec: TableInput, features: NDArray[np.float32]) -> None:
    """Refuse numbers so large that they overflow float32. Raises DataError naming row and column."""
    if np.isfinite(features).all():
        return
    row, feature = map(int, np.argwhere(~np.isfinite(features))[0])
    ends = np.cumsum([column.width for column in spec.columns])
    name = spec.columns[int(np.searchsorted(ends, feature, side="right"))].name
    raise DataError(
        f"row {row}: column {name!r}: the number is too large",
        f"{name!r} must stay within about 1e38 standard deviations of the training data",
    )


def _category_number(known: Mapping[str, int], text: str | None) -> int:
    if text is None:
        return -1
    if text in known:
        return known[text]
    return next((known[other] for other in spellings(text) if other in known), -1)


def _check_columns(spec: TableInput, rows: Sequence[Any]) -> None:
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{_place(place, rows)}a row must be an object of column names and values, not {type(row).__name__}",
                f'for example {{"{spec.columns[0].name}": …}}',
            )
        absent = [column.name for column in spec.columns if column.name not in row]
        if absent:
            close = nearest(absent[0], [str(name) for name in row])
            hint = f"; did you mean it by {close!r}?" if close else ""
            names = ", ".join(map(repr, absent[:5])) + (" …" if len(absent) > 5 else "")
            raise DataError(
                f"{_place(place, rows)}no column {names}{hint}",
                "give every column; null (or one of "
                + ", ".join(sorted(w for w in MISSING if w))
                + ") says that a value is missing",
            )


def _place(place: int, rows: Sequence[Any]) -> str:
    return f"row {place}: " if len(rows) > 1 else ""
