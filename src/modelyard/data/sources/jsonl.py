"""JSON Lines: an object a line, one file or a folder of shards, plain or gzip."""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from modelyard.data.cells import is_missing
from modelyard.data.sources.base import ColumnKind
from modelyard.data.sources.shards import BLOCK, Block, ShardedTable
from modelyard.spec.errors import DataError

_ENDS = (b"\xff\xfe", b"\xfe\xff")
_DECODER = msgspec.json.Decoder()


class JsonLines(ShardedTable):
    """A key that a line lacks is a missing value; a line that is no object is counted and named."""

    @property
    def suffixes(self) -> Sequence[str]:
        return (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")

    def kinds(self, path: Path, shown: str) -> dict[str, ColumnKind | str] | None:
        with _opened(path) as file:
            try:
                start = file.read(64).removeprefix(b"\xef\xbb\xbf")
            except (OSError, EOFError, zlib.error) as error:
                raise _broken(shown, error) from error
        if start.startswith(_ENDS):
            raise DataError(f"{shown} is UTF-16, not UTF-8", "save the file as UTF-8")
        if start.lstrip().startswith(b"["):
            raise DataError(
                f"{shown} is one JSON array and not JSON Lines",
                "write one object a line, for example with `jq -c '.[]'`",
            )
        return None

    def blocks(self, path: Path, shown: str, plain: Sequence[str]) -> Iterator[Block]:
        with _opened(path) as file:
            lines = enumerate(file, start=1)
            while True:
                try:
                    chunk = list(islice(lines, BLOCK))
                except (OSError, EOFError, zlib.error) as error:
                    raise _broken(shown, error) from error
                if not chunk:
                    return
                yield from self._parsed(chunk)

    def _parsed(self, chunk: Sequence[tuple[int, bytes]]) -> Iterator[Block]:
        """Good rows first, then each broken one."""
        rows: list[dict[str, Any]] = []
        numbers: list[int] = []
        broken: list[Block] = []
        for number, line in chunk:
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not content.strip():
                continue
            try:
                row = _DECODER.decode(content)
                if not isinstance(row, dict):
                    raise msgspec.DecodeError(f"it holds a JSON {_named(row)} and no object")
                if isinstance(label := row.get(self.data.target), list | dict):
                    raise msgspec.DecodeError(f"the target is a JSON {_named(label)}")
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                broken.append(Block(1, lines=[number], why=str(error)))
                continue
            rows.append(row)
            numbers.append(number)
        if rows:
            yield self._block(rows, numbers)
        yield from broken

    def _block(self, rows: Sequence[dict[str, Any]], numbers: Sequence[int]) -> Block:
        target = self.data.target
        names = dict.fromkeys(name for row in rows for name in row)
        return Block(
            rows=len(rows),
            columns={name: [row.get(name) for row in rows] for name in names if name != target},
            targets=[_label(row.get(target)) for row in rows],
            lines=numbers,
        )


def _opened(path: Path) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        return cast("IO[bytes]", gzip.open(path))
    return path.open("rb")


def _broken(shown: str, error: Exception) -> DataError:
    return DataError(
        f"{shown} cannot be read: {error}",
        "write or fetch that file again: how many lines are lost is not known",
    )


def _named(value: Any) -> str:
    return {list: "array", dict: "object", str: "string", bool: "truth", type(None): "null"}.get(
        type(value), "number"
    )


def _label(value: Any) -> Any:
    if is_missing(value):
        return None
    return value.strip() if isinstance(value, str) else value
