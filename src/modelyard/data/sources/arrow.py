"""Arrow's own formats: IPC file (Feather 2) or stream, one file or a folder of shards."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from modelyard.data.sources.arrow_columns import blocks_of, kinds_of
from modelyard.data.sources.base import ColumnKind
from modelyard.data.sources.shards import Block, ShardedTable
from modelyard.spec.errors import DataError

_FILE, _FEATHER_1 = b"ARROW1", b"FEA1"
"""How the files begin; what begins otherwise is taken for a stream."""
_BROKEN = (pa.ArrowException, OSError, EOFError)


class Arrow(ShardedTable):
    """A damaged batch of a file is counted and named; in a stream nothing can be read after it."""

    @property
    def suffixes(self) -> Sequence[str]:
        return (".arrow", ".feather", ".ipc", ".arrows")

    def kinds(self, path: Path, shown: str) -> dict[str, ColumnKind | str]:
        with _opened(path, shown) as reader:
            return kinds_of(reader.schema, shown)

    def blocks(self, path: Path, shown: str, plain: Sequence[str]) -> Iterator[Block]:
        with _opened(path, shown) as reader:
            if isinstance(reader, pa.ipc.RecordBatchFileReader):
                batches = _of_file(reader, path, shown)
            else:
                batches = _of_stream(reader, shown)
            for batch in batches:
                if isinstance(batch, Block):
                    yield batch
                else:
                    yield from blocks_of(batch, self.data.target, plain)


@contextlib.contextmanager
def _opened(path: Path, shown: str) -> Iterator[Any]:
    try:
        with path.open("rb") as file:
            start = file.read(8)
        if start.startswith(_FEATHER_1):
            raise DataError(
                f"{shown} is Feather version 1", "write it again with version 2 (Arrow IPC)"
            )
        source = pa.OSFile(str(path))
    except OSError as error:
        raise DataError(f"{shown} cannot be read: {error}", "mend its mode or owner") from error
    with source:
        try:
            opened = pa.ipc.open_file if start.startswith(_FILE) else pa.ipc.open_stream
            reader = opened(source)
        except _BROKEN as error:
            raise _lost_count(shown, error) from error
        yield reader


def _of_file(reader: Any, path: Path, shown: str) -> Iterator[Any]:
    for number in range(reader.num_record_batches):
        try:
            yield _checked(reader.get_batch(number))
        except _BROKEN as error:
            rows = _rows_of(path, number, len(reader.schema), error, shown)
            yield Block(rows, why=f"record batch {number} is damaged: {_first_line(error)}")


def _of_stream(reader: Any, shown: str) -> Iterator[Any]:
    while True:
        try:
            batch = _checked(reader.read_next_batch())
        except StopIteration:
            return
        except _BROKEN as error:
            raise _lost_count(shown, error) from error
        yield batch


def _checked(batch: Any) -> Any:
    """Arrow reads without looking: offsets that point outside would end the process later."""
    batch.validate(full=True)
    return batch


def _rows_of(path: Path, number: int, columns: int, error: Exception, shown: str) -> int:
    """How many rows a damaged batch has: any one of its columns may tell."""
    for column in range(columns):
        options = pa.ipc.IpcReadOptions(included_fields=[column])
        with (
            contextlib.suppress(*_BROKEN),
            pa.OSFile(str(path)) as source,
            pa.ipc.open_file(source, options=options) as reader,
        ):
            return int(reader.get_batch(number).num_rows)
    raise _lost_count(shown, error) from error


def _lost_count(shown: str, error: Exception) -> DataError:
    return DataError(
        f"{shown} cannot be read as Arrow: {_first_line(error)}",
        "write or fetch that file again, or move it away: how many rows are lost is not known",
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
