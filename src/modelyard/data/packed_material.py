"""Pictures whose files are kept as they came: looked at once here, and decoded again in each training."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from modelyard.data.decoders import Decoders, Slice
from modelyard.data.digest import digest_values
from modelyard.data.material import ImageMaterial, Positions, Read, Say, chunks
from modelyard.data.npy import write_array
from modelyard.data.packed import PACK, PLACES, PackedPictures, PackWriter
from modelyard.data.sources.base import Source, unfitted_image
from modelyard.spec.cores import available_cores
from modelyard.spec.errors import DataError
from modelyard.spec.signature import ImageInput

_FETCHES = 16
"""Files that are read at the same time: a remote place answers each only after a while."""
_Asked = tuple[Positions, NDArray[np.int64], Slice]
"""Rows in the source, their places in the pack, their pixels to come."""


class PackedImageMaterial(ImageMaterial):
    """``inputs.bin`` and ``places.npy`` (data/packed.py) in place of ``inputs.npy``."""

    def read(self, rows: Positions, say: Say) -> Read:
        """The files of one chunk are read while those of the one before are decoded."""
        digests, kept, places = [], [], []
        unreadable: dict[int, str] = {}
        folder = self.path.parent
        with contextlib.ExitStack() as stack:
            pack = stack.enter_context(PackWriter(folder))
            decoders = Decoders(self._spec, available_cores(), pack=folder / PACK)
            stack.callback(decoders.close)
            fetchers = stack.enter_context(ThreadPoolExecutor(_FETCHES))
            for some, found, begun in self._begun(rows, pack, decoders, fetchers, unreadable):
                pixels, broken = decoders.result(begun)
                good = np.setdiff1d(np.arange(len(some)), list(broken))
                unreadable |= {int(some[place]): why for place, why in broken.items()}
                digests.append(digest_values(pixels[good]))
                kept.append(some[good])
                places.append(found[good])
                if len(some):
                    say(f"read {np.searchsorted(rows, some[-1]) + 1} of {len(rows)} samples")
        self._places = np.concatenate(places)
        write_array(folder / PLACES, self._places)
        self._digests = np.concatenate(digests)
        return Read(np.concatenate(kept), self._digests, dict(sorted(unreadable.items())))

    @cached_property
    def _spec(self) -> ImageInput:
        return unfitted_image(self.data)

    @property
    def _sample_bytes(self) -> int:
        return math.prod(self.schema.shape)

    def _begun(
        self,
        rows: Positions,
        pack: PackWriter,
        decoders: Decoders,
        fetchers: Executor,
        unreadable: dict[int, str],
    ) -> Iterator[_Asked]:
        before: _Asked | None = None
        for start, stop in chunks(len(rows), self._sample_bytes):
            some, contents = self._contents(rows[start:stop], fetchers, unreadable)
            found = pack.append(contents)
            pieces = [(first, length) for first, length in found.tolist()]
            asked = (some, found, decoders.begin(pieces))
            if before is not None:
                yield before
            before = asked
        if before is not None:
            yield before

    def _contents(
        self, rows: Positions, fetchers: Executor, unreadable: dict[int, str]
    ) -> tuple[Positions, Sequence[bytes]]:
        """The files' bytes, and the rows of those that could be read."""

        source = self.source
        assert isinstance(source, Source)

        def content(row: int) -> bytes | str:
            try:
                return source.natural(row)[1]
            except DataError as error:
                return error.what

        found = dict(zip(rows.tolist(), fetchers.map(content, rows.tolist()), strict=True))
        unreadable |= {row: why for row, why in found.items() if isinstance(why, str)}
        whole = {row: bytes_ for row, bytes_ in found.items() if isinstance(bytes_, bytes)}
        return np.array([*whole], np.int64), [*whole.values()]

    def _train_chunks(self, train: Positions) -> Iterator[NDArray[np.uint8]]:
        pictures = PackedPictures(self._spec, self.path.parent, self._places)
        slices = [train[start:stop] for start, stop in chunks(len(train), self._sample_bytes)]
        for slice_, following in zip(slices, [*slices[1:], None], strict=True):
            pictures.begin(slice_)
            if following is not None:
                pictures.begin(following)
            yield pictures.take(slice_)
        pictures.close()
