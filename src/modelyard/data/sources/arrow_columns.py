"""Arrow's columns as cells: what kind a type is, and its values without a detour through Python."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modelyard.data.cells import is_missing, word
from modelyard.data.sources.base import ColumnKind
from modelyard.data.sources.columns import Cells, TypedCells
from modelyard.data.sources.shards import BLOCK, Block
from modelyard.spec.errors import DataError


def kinds_of(schema: Any, shown: str) -> dict[str, ColumnKind | str]:
    """Column -> kind, or its type in brackets. Raises DataError for two columns of one name."""
    if len(set(schema.names)) < len(schema.names):
        doubled = next(name for name in schema.names if schema.names.count(name) > 1)
        raise DataError(f"{shown} has two columns {doubled!r}", "give every column its own name")
    return {field.name: _kind(field.type) for field in schema}


def blocks_of(batch: Any, target: str, plain: Sequence[str]) -> Iterator[Block]:
    """A record batch in blocks. Columns of no kind are left out."""
    for start in range(0, batch.num_rows, BLOCK):
        part = batch.slice(start, BLOCK)
        columns = dict(zip(part.schema.names, part.columns, strict=True))
        yield Block(
            rows=part.num_rows,
            columns={
                name: _listed(column) if name in plain else _cells(column)
                for name, column in columns.items()
                if name != target and not _kind(column.type).startswith("(")
            },
            targets=[_label(value) for value in columns[target].to_pylist()],
        )


def _kind(kind: Any) -> ColumnKind | str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "numeric"
    if pa.types.is_null(kind):
        return "numeric"  # no value at all: the column is left out as constant
    if _is_text(kind):
        return "categorical"
    return f"({kind})"


def _is_text(kind: Any) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _cells(column: Any) -> Cells:
    kind = _kind(column.type)
    if kind == "categorical":
        return _words(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    numbers = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return TypedCells("boolean" if kind == "boolean" else "numeric", numbers)


def _words(column: Any) -> TypedCells:
    """Each different word is looked at once."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    texts = [word(text) for text in column.dictionary.to_pylist()]
    places = np.cumsum([text is not None for text in texts]) - 1
    own = np.array([p if t is not None else -1 for p, t in zip(places, texts, strict=True)] + [-1])
    indices = pc.fill_null(pc.cast(column.indices, pa.int64()), -1)
    codes = own[indices.to_numpy(zero_copy_only=False)].astype(np.int32)
    return TypedCells("categorical", codes, tuple(text for text in texts if text is not None))


def _listed(column: Any) -> list[Any]:
    """Plain Python values, for a column that is declared to be of another kind than its own."""
    if pa.types.is_decimal(column.type):
        column = pc.cast(column, pa.float64(), safe=False)
    values: list[Any] = column.to_pylist()
    return values


def _label(value: Any) -> str | int | float | None:
    if is_missing(value):
        return None
    if isinstance(value, str):
        return value.strip()
    return value if isinstance(value, int | float) else float(value)
