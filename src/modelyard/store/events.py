"""The append-only event log of a run: one JSON line an event, readable while it is written."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from modelyard.spec.errors import from_os_error
from modelyard.spec.records import AnyEvent

_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


class EventLog:
    """Appends events to one file; several processes may append to the same one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            # A writer that was killed may have left half a line; the next event must not join it.
            self._torn = not _ends_a_line(path)
        except OSError as error:
            raise from_os_error(error) from error

    def append(self, event: AnyEvent) -> None:
        """Write one event in one system call, so that lines of several writers never mix.

        Raises StoreError for a full disk; what was written of the event then counts for nothing.
        """
        text = msgspec.json.encode(event)
        with self._lock:  # the thread that writes checkpoints tells of them
            line = (b"\n" if self._torn else b"") + text + b"\n"
            try:
                self._torn = True
                # A nearly full disk takes part of the line; writing the rest then says so.
                while line := line[os.write(self._handle, line) :]:
                    pass
                self._torn = False
            except OSError as error:
                error.filename = str(self._path)
                raise from_os_error(error) from error

    def close(self) -> None:
        os.close(self._handle)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read(1) in (b"", b"\n")


class EventReader:
    """Reads a log from its beginning, or from a ``position`` of another reader, and then whatever is new."""

    def __init__(self, path: Path, position: int = 0) -> None:
        self._path = path
        self._position = position

    @property
    def position(self) -> int:
        """How far it has read: bytes."""
        return self._position

    def read(self) -> Iterator[AnyEvent]:
        """The events since the last call; a half-written last line waits for the next call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            content = file.read()
        whole, newline, _ = content.rpartition(b"\n")
        self._position += len(whole) + len(newline)
        for line in whole.split(b"\n"):
            if event := decode(line):
                yield event


def decode(line: bytes) -> AnyEvent | None:
    """One line as an event; None for an empty line or one torn by a crash of its writer."""
    if not line.strip():
        return None
    try:
        return _decoder.decode(line)
    except msgspec.DecodeError:
        return None


def read_events(path: Path) -> list[AnyEvent]:
    """All whole events of a log, oldest first."""
    return list(EventReader(path).read())


def now() -> float:
    """Seconds since 1970, as events carry them."""
    return time.time()
