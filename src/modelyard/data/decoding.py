"""Pictures of a list of files, decoded in line while they are few, and by processes from then on."""

import math
import time
import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from modelyard.data.decoder import read_pixels
from modelyard.data.decoders import Decoders, Slice
from modelyard.data.image_file import MODES, channels_first
from modelyard.spec.cores import available_cores
from modelyard.spec.signature import ImageInput

_IN_LINE_SECONDS = 0.05
"""Decoding that has taken so long is worth processes, which need about as long to be there."""
_MOST_PROCESSES = 64
Pictures = tuple[NDArray[np.uint8], dict[int, str]]
"""Pixels (n, c, h, w), and place -> why, where a file cannot be read: its pixels are zeros."""


class Decoding:
    """Slices of the list; the next one is begun early where they follow one another, as in a preparation."""

    def __init__(self, spec: ImageInput, files: Sequence[str]) -> None:
        self._spec, self._files = spec, files
        self._seconds = 0.0 if available_cores() > 1 else -math.inf
        """Spent in line so far."""
        self._stop = 0
        """Where the last slice ended."""
        self._decoders: Decoders | None = None
        self._ahead: tuple[int, int, Slice] | None = None

    def pixels(self, start: int, stop: int) -> Pictures:
        """Of files ``start`` to ``stop``. Raises DataError only where a file ends whoever decodes it."""
        follows, self._stop = start == self._stop, stop
        if self._decoders is None:
            return self._in_line(start, stop)
        begun = self._begun(self._decoders, start, stop)
        if follows and stop < len(self._files):
            end = min(2 * stop - start, len(self._files))
            self._ahead = (stop, end, self._decoders.begin(self._files[stop:end]))
        return self._decoders.result(begun)

    def _begun(self, decoders: Decoders, start: int, stop: int) -> Slice:
        """That slice, which may be at work already."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if ahead[:2] == (start, stop):
                return ahead[2]
            decoders.drop(ahead[2])
        return decoders.begin(self._files[start:stop])

    def _in_line(self, start: int, stop: int) -> Pictures:
        """As far as that is worth no processes; they are started for the rest."""
        pixels = np.zeros((stop - start, *self._spec.shape), np.uint8)
        unreadable: dict[int, str] = {}
        mode, size = MODES[self._spec.color], (self._spec.width, self._spec.height)
        for place in range(stop - start):
            if self._seconds > _IN_LINE_SECONDS:
                decoders = self._decoders = Decoders(
                    self._spec, min(available_cores(), _MOST_PROCESSES)
                )
                weakref.finalize(self, decoders.close)
                pixels[place:], others = self.pixels(start + place, stop)
                return pixels, unreadable | {place + other: why for other, why in others.items()}
            began = time.perf_counter()
            found = read_pixels(self._files[start + place], mode, size)
            if isinstance(found, str):
                unreadable[place] = found
            else:
                pixels[place] = channels_first(self._spec, found)
            self._seconds += time.perf_counter() - began
        return pixels, unreadable
