"""Parquet: one file, or a folder of shards, read row group by row group."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from modelyard.data.sources.arrow_columns import blocks_of, kinds_of
from modelyard.data.sources.base import ColumnKind
from modelyard.data.sources.shards import BLOCK, Block, ShardedTable
from modelyard.spec.errors import DataError

_BUFFER = 1024 * 1024
"""Bytes of a column that are read at a time, so that a row group may be of any size."""


class Parquet(ShardedTable):
    """A row group that cannot be decoded is counted and named; its size stands in the footer."""

    @property
    def suffixes(self) -> Sequence[str]:
        return (".parquet", ".pq")

    def kinds(self, path: Path, shown: str) -> dict[str, ColumnKind | str]:
        with _opened(path, shown) as file:
            return kinds_of(file.schema_arrow, shown)

    def blocks(self, path: Path, shown: str, plain: Sequence[str]) -> Iterator[Block]:
        with _opened(path, shown) as file:
            for group in range(file.num_row_groups):
                yield from self._group(file, group, plain)

    def _group(self, file: Any, group: int, plain: Sequence[str]) -> Iterator[Block]:
        rows, done = file.metadata.row_group(group).num_rows, 0
        batches = file.iter_batches(batch_size=BLOCK, row_groups=[group], use_threads=False)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                why = f"row group {group} is damaged: {_first_line(error)}"
                yield Block(rows - done, why=why)
                return
            if batch is None:
                return
            yield from blocks_of(batch, self.data.target, plain)
            done += batch.num_rows


def _opened(path: Path, shown: str) -> Any:
    try:
        return pq.ParquetFile(
            path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True
        )
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{shown} cannot be read as Parquet: {_first_line(error)}",
            "write or fetch that file again, or move it away: how many rows it held is not known",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
