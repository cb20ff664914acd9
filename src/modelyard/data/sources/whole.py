"""Arrays that are in memory as a whole: checked as inputs, targets or columns of a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.data.cells import is_missing
from modelyard.data.sources.base import Rows, object_array
from modelyard.data.sources.columns import (
    ColumnScan,
    TextInNumbersError,
    missing_finding,
    text_in_numbers,
)
from modelyard.data.sources.table import CellError, Table, choose_columns
from modelyard.spec.errors import DataError, did_you_mean
from modelyard.spec.project import DataSection

_WANTED = "give inputs and targets as NumPy arrays or lists of equal length, or a dict of columns"


def whole_table(
    inputs: Mapping[str, Any], rows: int, data: DataSection, shown: str, scratch: Path
) -> Table:
    """Columns of ``rows`` values as a table. Raises DataError; ``shown`` is where they come from."""
    columns = {str(name): _cells(name, values) for name, values in inputs.items()}
    for name, cells in columns.items():
        if len(cells) != rows:
            raise DataError(
                f"{shown}: column {name!r} has {len(cells)} values, the target {rows}", _WANTED
            )
    unknown = [name for name in data.columns if name not in columns]
    if unknown:
        hint = did_you_mean(unknown[0], columns)
        raise DataError(
            f"[data.columns] names {unknown[0]!r}, which {shown} does not return{hint}",
            f"its columns are {', '.join(columns)}",
        )
    scans = [ColumnScan(name) for name in columns]
    for scan in scans:
        scan.see(columns[scan.name], 0)
    try:
        chosen = choose_columns(scans, data.columns)
    except TextInNumbersError as error:
        names = [f"row {row}" for row, _ in error.scan.texts]
        raise text_in_numbers(error.scan, names) from error
    table = Table(chosen, scratch)
    try:
        table.append(columns, rows)
    except CellError as error:
        raise error.as_data_error(f"{shown}: row {error.where()}") from error
    table.finish(data.columns)
    kept = {column.name for column in table.schema.columns}
    table.findings += tuple(
        missing_finding(scan.name, scan.missing, scan.rows)
        for scan in scans
        if scan.missing and scan.name in kept
    )
    return table


def finite_rows(values: NDArray[Any]) -> Rows:
    """Numbers as float32; a row with one that is not finite is unreadable."""
    with np.errstate(over="ignore"):  # refused below
        numbers = values.astype(np.float32)
    finite = np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1)
    numbers[~finite] = 0.0
    bad = np.flatnonzero(~finite).tolist()
    return Rows(numbers, dict.fromkeys(bad, "holds a number that is NaN, infinite or too large"))


def label_array(targets: Any, shown: str) -> NDArray[np.object_]:
    values = np.asarray(targets)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "biufUO":
        raise DataError(
            f"{shown}: targets have shape {list(values.shape)} and type {values.dtype}",
            "give one string, integer or float for each sample",
        )
    labels = [None if is_missing(value) else value for value in values.tolist()]
    if any(not isinstance(label, str | int | float | None) for label in labels):
        raise DataError(f"{shown}: a target is neither text nor a number", _WANTED)
    return object_array([label.strip() if isinstance(label, str) else label for label in labels])


def number_array(inputs: Any, shown: str) -> NDArray[Any]:
    try:
        # asanyarray keeps a memory map a memory map.
        values: NDArray[Any] = np.asanyarray(inputs)
    except ValueError as error:
        raise DataError(f"{shown}: the inputs are ragged: {error}", _WANTED) from error
    if values.dtype.kind not in "biuf":
        raise DataError(
            f"{shown}: inputs have type {values.dtype}, which is not numbers",
            "give numbers, or a dict of columns for a table with words",
        )
    if values.ndim < 2 or 0 in values.shape:
        raise DataError(
            f"{shown}: inputs have shape {list(values.shape)}",
            "give an array of shape (samples, …) with two or more axes, none of them empty",
        )
    return values


def _cells(name: Any, values: Any) -> list[Any]:
    """A column as a list of plain Python values."""
    column = np.asarray(values)
    if column.ndim != 1 or column.dtype.kind not in "biufUO":
        raise DataError(
            f"column {name!r} has shape {list(column.shape)} and type {column.dtype}",
            "a column is one axis of numbers, words or truths",
        )
    return column.tolist()  # type: ignore[no-any-return]
