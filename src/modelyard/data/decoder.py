"""The program that decodes image files beside others: ``python -m modelyard.data.decoder MODE WIDTH HEIGHT MEMORY [PACK]``.

Told a line of JSON, ``{"start": byte, "files": [path, …]}``, it puts the files' pixels one behind the
other into the shared memory (a file descriptor) from that byte on, and answers with a line of JSON:
``{place in files: why it cannot be read}``. Where there is a PACK (data/packed.py), a file is a piece of
it, ``[first byte, bytes]``, and no path. It ends when nobody can ask any more. Being there within
a twentieth of a second is what it is for: it imports Pillow and nothing of that weight.
"""

import json
import mmap
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from modelyard.data.pixels import decode_pixels
from modelyard.spec.errors import DataError
from modelyard.spec.parent import end_with_parent

LONGEST_REASON = 200
"""Characters: the answer to ``MOST_FILES`` broken files must fit a pipe (64 KiB), so that nobody waits to write."""
MOST_FILES = 64
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""A named pipe that lies among the pictures counts as empty, and nobody waits for its writer."""


def read_pixels(file: str | Path, mode: str, size: tuple[int, int]) -> bytes | str:
    """The file's pixels, as ``decode_pixels`` gives them, or why there are none."""
    return _pixels(lambda: read_file(file), mode, size)


def read_piece(pack: int, place: tuple[int, int], mode: str, size: tuple[int, int]) -> bytes | str:
    """As ``read_pixels``, of a piece (first byte, bytes) of the open file ``pack``."""
    return _pixels(lambda: os.pread(pack, place[1], place[0]), mode, size)


def read_file(file: str | Path) -> bytes:
    """All of it. Raises OSError."""
    descriptor = os.open(file, _OPEN)
    try:
        content = os.read(descriptor, os.fstat(descriptor).st_size + 1)
        while more := os.read(descriptor, 1 << 20):  # a read may be short of what is there
            content += more
    finally:
        os.close(descriptor)
    return content


def _pixels(read: Callable[[], bytes], mode: str, size: tuple[int, int]) -> bytes | str:
    try:
        return decode_pixels(read(), mode, size)
    except DataError as error:
        return error.what[:LONGEST_REASON]
    except OSError as error:
        return (error.strerror or str(error))[:LONGEST_REASON]


def main(mode: str, size: tuple[int, int], memory: int, pack: str = "") -> None:
    """Answer until there is nobody who asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then goes away
    end_with_parent()
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not become an answer
    pixels = memoryview(mmap.mmap(memory, 0))
    sample = size[0] * size[1] * (3 if mode == "RGB" else 1)
    packed = os.open(pack, os.O_RDONLY | os.O_CLOEXEC) if pack else None
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        unreadable = {}
        at = asked["start"]
        for place, file in enumerate(asked["files"]):
            found = (
                read_pixels(file, mode, size)
                if packed is None
                else read_piece(packed, file, mode, size)
            )
            if isinstance(found, str):
                unreadable[place] = found
                found = bytes(sample)
            pixels[at : at + sample] = found
            at += sample
        os.write(answers, json.dumps(unreadable).encode() + b"\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1], (int(sys.argv[2]), int(sys.argv[3])), int(sys.argv[4]), *sys.argv[5:])
    except BrokenPipeError:
        os._exit(0)  # the parent went away while this decoded
