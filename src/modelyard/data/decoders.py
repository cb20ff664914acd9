"""Processes that decode image files, as many as cores, and the slices that they work on.

Threads do not do: for a small picture Pillow holds the interpreter most of the time. Each process is a
command of its own (data/decoder.py), so that nothing is forked that has threads, and no program of the
user's is imported again. Paths go to it over a pipe, pixels come back in shared memory, and a thread
for each process lays them where they belong. What comes out does not depend on how many there are.
"""

import contextlib
import json
import mmap
import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelyard.data.decoder import MOST_FILES
from modelyard.data.image_file import MODES
from modelyard.spec.errors import DataError
from modelyard.spec.signature import ImageInput

_PIECE_BYTES = 1 << 20
"""About as many bytes of pixels are asked for at once."""
_ASKED = 2
"""Pieces that a process has at a time: it works on one, and finds the next when that is done."""
_ENDS = 3
"""Processes that may end over one file before it is taken for the cause: all may be killed by someone else."""
_REQUEST_BYTES = 24 * 1024
"""Paths asked for at once: two requests must fit a pipe (64 KiB), so that nobody waits to write."""
_LAST_WORDS_SECONDS = 5.0


File = str | tuple[int, int]
"""A path, or of a pack (data/packed.py) the first byte and the number of bytes."""


class Slice:
    """Files that are being decoded; ``Decoders.begin`` makes it."""

    def __init__(self, files: Sequence[File], shape: tuple[int, ...]) -> None:
        self.files = files
        self.pixels = np.empty((len(files), *shape), np.uint8)
        self.unreadable: dict[int, str] = {}
        self.left = len(files)
        """Files without an answer so far."""


@dataclass(frozen=True)
class _Piece:
    """Some files of a slice, which one process is asked for at once."""

    slice: Slice
    first: int
    stop: int
    lost: int = 0
    """How many processes have ended over it."""

    @property
    def files(self) -> Sequence[File]:
        return self.slice.files[self.first : self.stop]


class Decoders:
    """``count`` processes, started at once; whoever has them closes them."""

    def __init__(self, spec: ImageInput, count: int, *, pack: Path | None = None) -> None:
        """``pack``: the file of which all that is asked for are pieces."""
        self._spec, self._pack = spec, pack
        sample = spec.height * spec.width * spec.channels
        self._length = max(1, min(MOST_FILES, _PIECE_BYTES // sample))
        self._changed = threading.Condition()
        """Held for all that follows, and for what a slice says."""
        self._waiting: deque[_Piece] = deque()
        self._closed = False
        self._error: Exception | None = None
        self._processes = [_Process(spec, self._length, pack) for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._serve, args=(process,), name="decode", daemon=True)
            for process in self._processes
        ]
        for thread in self._threads:
            thread.start()

    @property
    def processes(self) -> list[int]:
        """Their process ids."""
        return [process.identifier for process in self._processes]

    def begin(self, files: Sequence[File]) -> Slice:
        """Have these files decoded, after those that were asked for before.

        Few are shared out evenly, so that no process is idle while another has all of a batch.
        """
        begun = Slice(files, self._spec.shape)
        with self._changed:
            self._waiting += self._pieces(begun)
            self._changed.notify_all()
        return begun

    def result(self, begun: Slice) -> tuple[NDArray[np.uint8], dict[int, str]]:
        """Pixels (n, c, h, w), and place -> why, where a file cannot be read: its pixels are zeros.

        Waits until all are there. Raises DataError for a file that ends whoever decodes it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error or not begun.left)
            if self._error:
                raise self._error
        return begun.pixels, dict(sorted(begun.unreadable.items()))

    def drop(self, begun: Slice) -> None:
        """Its files are not wanted any more."""
        with self._changed:
            self._waiting = deque(piece for piece in self._waiting if piece.slice is not begun)

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for process in self._processes:
            process.kill()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _pieces(self, begun: Slice) -> Iterator[_Piece]:
        first, length = 0, 0
        most = min(self._length, -(-len(begun.files) // len(self._processes)))
        for place, file in enumerate(begun.files):
            size = 6 * len(file) + 4 if isinstance(file, str) else 48  # six letters for one in JSON
            if place - first == most or (place > first and length + size > _REQUEST_BYTES):
                yield _Piece(begun, first, place)
                first, length = place, 0
            length += size
        if begun.files:
            yield _Piece(begun, first, len(begun.files))

    def _named(self, file: File) -> str:
        return file if isinstance(file, str) else f"the picture at byte {file[0]} of {self._pack}"

    def _serve(self, process: "_Process") -> None:
        """The life of a thread: keep its process busy, and start another one where it ends."""
        asked: deque[_Piece] = deque()
        try:
            while self._ask(asked, process):
                try:
                    unreadable = process.answer()
                except _Ended as ended:
                    if not self._ask_again(asked, str(ended)):
                        return
                    process.start()
                else:
                    self._answered(asked.popleft(), process, unreadable)
        except Exception as error:  # noqa: BLE001  it is raised where a slice is waited for
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()
        finally:
            process.end()

    def _ask(self, asked: deque[_Piece], process: "_Process") -> bool:
        """Have the process asked for ``_ASKED`` pieces, if there are; for one at least. False: closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: asked or self._waiting or self._closed)
                if self._closed or len(asked) == _ASKED or not self._waiting:
                    return not self._closed
                asked.append(self._waiting.popleft())
            process.ask(asked[-1].files)

    def _answered(self, piece: _Piece, process: "_Process", unreadable: dict[int, str]) -> None:
        begun = piece.slice
        pixels = process.pixels(piece.stop - piece.first)
        begun.pixels[piece.first : piece.stop] = pixels.transpose(0, 3, 1, 2)
        with self._changed:
            begun.unreadable |= {piece.first + place: why for place, why in unreadable.items()}
            begun.left -= piece.stop - piece.first
            if not begun.left:
                self._changed.notify_all()

    def _ask_again(self, asked: deque[_Piece], how: str) -> bool:
        """A process has ended. What it was at is asked for file by file: one of them may be the cause.

        False where that was meant, by ``close``.
        """
        with self._changed:
            if self._closed:
                return False
            at = asked.popleft()
            self._waiting.extendleft(reversed(asked))
            asked.clear()
            if at.lost == _ENDS:
                raise DataError(
                    f"{self._named(at.files[0])}: whoever decodes it ends ({how})",
                    "delete the file; or, where memory is short, give it more",
                )
            places = reversed(range(at.first, at.stop))
            self._waiting.extendleft(_Piece(at.slice, n, n + 1, at.lost + 1) for n in places)
            self._changed.notify_all()
            return True


class _Ended(Exception):
    """The process is gone; says how."""


class _Process:
    """One decoding process and the memory that it shares with this one."""

    def __init__(self, spec: ImageInput, length: int, pack: Path | None) -> None:
        """``length``: files that it is asked for at once, at most."""
        self._shape = (length, spec.height, spec.width, spec.channels)
        self._bytes = length * spec.height * spec.width * spec.channels
        self._told = [MODES[spec.color], str(spec.width), str(spec.height)]
        self._pack = [] if pack is None else [str(pack)]
        self._descriptor = _memory(_ASKED * self._bytes)
        self._mapped = mmap.mmap(self._descriptor, _ASKED * self._bytes)
        self.start()

    def start(self) -> None:
        """Again, where it was started before."""
        self._asked = self._answered = 0
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "modelyard.data.decoder",
                *self._told,
                str(self._descriptor),
                *self._pack,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._descriptor],
        )

    @property
    def identifier(self) -> int:
        return self._process.pid

    def ask(self, files: Sequence[File]) -> None:
        """One that has ended over what it was asked for is told of by ``answer``."""
        if self._asked == self._answered and self._process.poll() is not None:
            self._close()
            self.start()
        asked = {"start": self._asked % _ASKED * self._bytes, "files": files}
        self._asked += 1
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()

    def answer(self) -> dict[int, str]:
        """To what was asked first of all that has no answer yet. Raises _Ended."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            with contextlib.suppress(
                subprocess.TimeoutExpired
            ):  # killed too early it would not say why
                self._process.wait(_LAST_WORDS_SECONDS)
            self._close()
            code = self._process.returncode
            raise _Ended(f"exit code {code}" if code >= 0 else f"signal {-code}")
        return {int(place): why for place, why in json.loads(line).items()}

    def pixels(self, count: int) -> NDArray[np.uint8]:
        """(count, h, w, c) of the answer that was given last; good until ``ask`` is called again."""
        slot = self._answered % _ASKED
        self._answered += 1
        whole = np.frombuffer(self._mapped, np.uint8, self._bytes, slot * self._bytes)
        return whole.reshape(self._shape)[:count]

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        """For good."""
        self._close()
        os.close(self._descriptor)

    def _close(self) -> None:
        self._process.kill()
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def _memory(size: int) -> int:
    """The descriptor of a file without a name; where the system can, it lies in memory only."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("pixels")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size)
    return descriptor
