"""Logs that stay small: every line with its time, files rotated by size, read back as one story."""

import datetime
import os
from pathlib import Path

_TIME_LENGTH = len("2026-01-01T00:00:00.000Z")
_TAIL_BYTES = 256 * 1024


class RotatingLog:
    """Appends timed lines to ``path``; beyond ``limit`` bytes it becomes ``path.1``, and so on."""

    def __init__(
        self, path: Path, *, limit: int = 5_000_000, keep: int = 3, own_output: bool = False
    ) -> None:
        self.path = path
        self._limit = limit
        self._keep = keep
        self._own_output = own_output
        """This process's own stdout and stderr go to the same file, also after a rotation."""
        self._open()

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab", buffering=0)
        self._size = self.path.stat().st_size
        if self._own_output:
            os.dup2(self._file.fileno(), 1)
            os.dup2(self._file.fileno(), 2)

    def write(self, line: str) -> None:
        """Add one line. A full disk loses the line, never the service."""
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        record = f"{time.removesuffix('+00:00')}Z {line.rstrip()}\n".encode(errors="replace")
        try:
            if self._size + len(record) > self._limit and self._size:
                self._rotate()
            self._file.write(record)
            self._size += len(record)
        except OSError:
            return

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._keep - 1, 0, -1):
            older = self.path.with_name(
                f"{self.path.name}.{number - 1}" if number > 1 else self.path.name
            )
            if older.exists():
                older.rename(self.path.with_name(f"{self.path.name}.{number}"))
        self._open()

    def close(self) -> None:
        self._file.close()


def merged_tail(folder: Path, lines: int) -> str:
    """The last ``lines`` lines of all logs in ``folder`` in order of time, each with whose it is."""
    merged: list[tuple[str, str]] = []
    for path in sorted(folder.glob("*.log")):
        time = ""
        for line in _last_lines(path, lines):
            # A line without a time (a crash of the interpreter) stays with the one before it.
            if line[:4].isdigit() and line[_TIME_LENGTH - 1 : _TIME_LENGTH] == "Z":
                time, text = line[:_TIME_LENGTH], line
            else:
                text = f"{time} {line}"
            merged.append((time, f"{path.stem} | {text}"))
    merged.sort(key=lambda entry: entry[0])
    return "\n".join(text for _, text in merged[-lines:])


def _last_lines(path: Path, lines: int) -> list[str]:
    older = path.with_name(f"{path.name}.1")
    text = _tail(older) + _tail(path) if older.exists() else _tail(path)
    return text.decode(errors="replace").splitlines()[-lines:]


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        content = file.read()
    return content if size <= _TAIL_BYTES else content.partition(b"\n")[2]
