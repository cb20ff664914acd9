"""Arrays from the user's own Python: ``source = "module:function"``."""

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.data.cells import is_missing
from modelyard.data.digest import code_files
from modelyard.data.sources.base import Rows, Schema, Source, object_array
from modelyard.data.sources.columns import (
    ColumnScan,
    TextInNumbersError,
    missing_finding,
    text_in_numbers,
)
from modelyard.data.sources.table import CellError, Table, choose_columns
from modelyard.spec.errors import DataError, nearest
from modelyard.spec.records import Finding

_RETURNS = (
    'return (inputs, targets), {"inputs": …, "targets": …}, or a dict of columns that holds the target, '
    "as NumPy arrays or lists of equal length"
)


class Arrays(Source):
    """The function is called without arguments, in the project's folder.

    Inputs of numbers with two or more axes are tensors, one a row of axis 0; a dict of columns is a
    table. What the function reads is part of the dataset's identity where ``data.path`` names it.
    """

    def files(self) -> Sequence[Path]:
        if not self.data.path:
            return []
        path = (self.root / Path(self.data.path).expanduser()).resolve()
        if not path.exists():
            raise DataError(f"data.path: nothing at {path}", "mend data.path, or leave it out")
        if path.is_file():
            return [path]
        return sorted(file for file in path.rglob("*") if file.is_file())

    def code(self) -> Mapping[str, Path]:
        return code_files(self.root, self._module)

    def schema(self) -> Schema:
        content = self._content[0]
        if isinstance(content, Table):
            return content.schema
        return Schema("tensor", shape=content.shape[1:])

    def __len__(self) -> int:
        return len(self._content[1])

    def targets(self) -> NDArray[np.object_]:
        return self._content[1]

    def rows(self, start: int, stop: int) -> Rows:
        content = self._content[0]
        if isinstance(content, Table):
            return content.rows(start, stop)
        values = np.asarray(content[start:stop])
        with np.errstate(over="ignore"):  # refused below
            numbers = values.astype(np.float32)
        finite = np.isfinite(numbers).reshape(len(numbers), -1).all(axis=1)
        numbers[~finite] = 0.0
        bad = np.flatnonzero(~finite).tolist()
        return Rows(
            numbers, dict.fromkeys(bad, "holds a number that is NaN, infinite or too large")
        )

    def natural(self, row: int) -> tuple[str, bytes]:
        content = self._content[0]
        if isinstance(content, Table):
            return ".json", json.dumps(content.natural(row), ensure_ascii=False).encode()
        return ".json", json.dumps(np.asarray(content[row]).astype(np.float32).tolist()).encode()

    def name(self, row: int) -> str:
        return f"row {row}"

    def findings(self) -> tuple[Finding, ...]:
        content = self._content[0]
        return content.findings if isinstance(content, Table) else ()

    @property
    def _module(self) -> str:
        return self.data.source.partition(":")[0]

    @cached_property
    def _content(self) -> tuple[Table | NDArray[Any], NDArray[np.object_]]:
        inputs, targets = _two_parts(self._call(), self.data.target, self.data.source)
        labels = _labels(targets, self.data.source)
        if isinstance(inputs, Mapping):
            return self._table(inputs, len(labels)), labels
        values = _numbers(inputs, self.data.source)
        if len(values) != len(labels):
            raise DataError(
                f"{self.data.source} returned {len(values)} inputs and {len(labels)} targets",
                "return one target for each input",
            )
        return values, labels

    def _call(self) -> Any:
        function = self._function()
        try:
            with contextlib.chdir(self.root):
                return function()
        except DataError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise DataError(
                f"{self.data.source} raised {type(error).__name__}: {error}{_where(error, self.root)}",
                "mend the function; it is called without arguments, in the project's folder",
            ) from error

    def _function(self) -> Callable[[], Any]:
        name = self.data.source.partition(":")[2]
        with importable(self.root, self.code()):
            try:
                module = importlib.import_module(self._module)
            except Exception as error:  # the user's code may raise anything
                raise DataError(
                    f"importing {self._module!r} raised {type(error).__name__}: {error}{_where(error, self.root)}",
                    "mend the module, or install what it needs",
                ) from error
        function = getattr(module, name, None)
        if not callable(function):
            close = nearest(name, [known for known in vars(module) if not known.startswith("_")])
            hint = f"; did you mean {close!r}?" if close else ""
            raise DataError(
                f"{module.__file__} has no function {name!r}{hint}",
                'data.source is written "module:function"',
            )
        return function  # type: ignore[no-any-return]

    def _table(self, inputs: Mapping[str, Any], rows: int) -> Table:
        columns = {str(name): _cells(name, values) for name, values in inputs.items()}
        for name, cells in columns.items():
            if len(cells) != rows:
                raise DataError(
                    f"{self.data.source}: column {name!r} has {len(cells)} values, the target {rows}",
                    _RETURNS,
                )
        unknown = [name for name in self.data.columns if name not in columns]
        if unknown:
            close = nearest(unknown[0], columns)
            hint = f"; did you mean {close!r}?" if close else ""
            raise DataError(
                f"[data.columns] names {unknown[0]!r}, which {self.data.source} does not return{hint}",
                f"its columns are {', '.join(columns)}",
            )
        scans = [ColumnScan(name) for name in columns]
        for scan in scans:
            scan.see(columns[scan.name], 0)
        try:
            chosen = choose_columns(scans, self.data.columns)
        except TextInNumbersError as error:
            names = [self.name(row) for row, _ in error.scan.texts]
            raise text_in_numbers(error.scan, names) from error
        table = Table(chosen, self.scratch)
        try:
            table.append(columns, rows)
        except CellError as error:
            raise error.as_data_error(f"{self.data.source}: {self.name(error.where())}") from error
        table.finish(self.data.columns)
        kept = {column.name for column in table.schema.columns}
        gaps = [missing_finding(s.name, s.missing, s.rows) for s in scans if s.missing]
        table.findings += tuple(
            gap
            for scan, gap in zip([s for s in scans if s.missing], gaps, strict=True)
            if scan.name in kept
        )
        return table


@contextlib.contextmanager
def importable(root: Path, modules: Mapping[str, Path]) -> Iterator[None]:
    """Let ``modules`` be imported from ``root``, as they are on disk now.

    Another project in the same process may have had modules of the same names: those are forgotten.
    """
    for name in modules:
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))


def _two_parts(result: Any, target: str, source: str) -> tuple[Any, Any]:
    """Inputs and targets from any of the accepted forms."""
    if isinstance(result, Mapping):
        if set(result) == {"inputs", "targets"}:
            return result["inputs"], result["targets"]
        if target not in result:
            close = nearest(target, [str(name) for name in result])
            hint = f"; did you mean {close!r}?" if close else ""
            raise DataError(
                f"{source} returned no target column {target!r}{hint}",
                f"set data.target to one of {', '.join(map(str, result))}",
            )
        return {name: values for name, values in result.items() if name != target}, result[target]
    if isinstance(result, tuple | list) and len(result) == 2:
        return result[0], result[1]
    raise DataError(f"{source} returned {type(result).__name__}", _RETURNS)


def _labels(targets: Any, source: str) -> NDArray[np.object_]:
    values = np.asarray(targets)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "biufUO":
        raise DataError(
            f"{source}: targets have shape {list(values.shape)} and type {values.dtype}",
            "return one string, integer or float for each sample",
        )
    labels = [None if is_missing(value) else value for value in values.tolist()]
    if any(not isinstance(label, str | int | float | None) for label in labels):
        raise DataError(f"{source}: a target is neither text nor a number", _RETURNS)
    return object_array([label.strip() if isinstance(label, str) else label for label in labels])


def _numbers(inputs: Any, source: str) -> NDArray[Any]:
    try:
        # asanyarray keeps a memory map a memory map.
        values: NDArray[Any] = np.asanyarray(inputs)
    except ValueError as error:
        raise DataError(f"{source}: the inputs are ragged: {error}", _RETURNS) from error
    if values.dtype.kind not in "biuf":
        raise DataError(
            f"{source}: inputs have type {values.dtype}, which is not numbers",
            "return numbers, or a dict of columns for a table with words",
        )
    if values.ndim < 2 or 0 in values.shape:
        raise DataError(
            f"{source}: inputs have shape {list(values.shape)}",
            "return an array of shape (samples, …) with two or more axes, none of them empty",
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


def _where(error: BaseException, root: Path) -> str:
    """`` (file, line n)`` of the innermost frame in the project."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith(f"{root}{os.sep}"):
            place = f" ({Path(file).relative_to(root)}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place
