"""Texts on their way into a prepared dataset: the vocabulary is that of the training split."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from modelyard.data import profile
from modelyard.data.digest import digest_values
from modelyard.data.material import Material, Positions, Read, Say, chunks, take
from modelyard.data.npy import ArrayWriter
from modelyard.data.profile import FeatureProfile
from modelyard.data.text import WordCount, encode_texts, split_words
from modelyard.spec.errors import DataError
from modelyard.spec.signature import NaturalInput, TextInput

_ASSUMED_BYTES = 8192
"""Of a text, for slices of a size that fits in memory: how long texts are is not known before."""
_SAY = 100_000


class TextMaterial(Material):
    """Read in passes, as a table is."""

    def read(self, rows: Positions, say: Say) -> Read:
        digests, kept = [], []
        unreadable: dict[int, str] = {}
        for start, stop in chunks(len(rows), _ASSUMED_BYTES):
            chunk = take(self.source, rows[start:stop])
            assert not isinstance(chunk.values, dict)
            good = np.setdiff1d(np.arange(stop - start), list(chunk.unreadable))
            unreadable |= {int(rows[start + i]): why for i, why in chunk.unreadable.items()}
            digests.append(np.array([_digest(chunk.values[i]) for i in good], dtype=np.uint64))
            kept.append(rows[start:stop][good])
            if stop == len(rows) or start // _SAY != stop // _SAY:
                say(f"read {stop} of {len(rows)} texts")
        self._rows = np.concatenate(kept)
        return Read(self._rows, np.concatenate(digests), unreadable)

    def fit(self, train: Positions) -> TextInput:
        words, lengths = WordCount(), []
        for texts in self._texts(self._rows[train]):
            words.add(texts)
            lengths += [_length(self.data.tokens, text) for text in texts]
        self._profiles = (profile.numeric("tokens", np.array(lengths)), _words(words))
        known = words.most(max(1, self.data.vocabulary - 2)) if self.data.tokens == "words" else ()
        return TextInput(length=self.data.length, tokens=self.data.tokens, words=known)

    def write(self, spec: NaturalInput) -> NDArray[np.uint64]:
        assert isinstance(spec, TextInput)
        digests = []
        with ArrayWriter(self.path, "int32", spec.shape) as writer:
            for texts in self._texts(self._rows):
                numbers = encode_texts(spec, texts)
                writer.append(numbers)
                digests.append(digest_values(numbers))
        return np.concatenate(digests)

    def features(self, train: Positions) -> tuple[FeatureProfile, ...]:
        return self._profiles

    def _texts(self, rows: Positions) -> Iterator[Sequence[str]]:
        for start, stop in chunks(len(rows), _ASSUMED_BYTES):
            values = take(self.source, rows[start:stop]).values
            assert not isinstance(values, dict)
            yield values.tolist()


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _length(tokens: str, text: str) -> int:
    return len(text.encode()) if tokens == "bytes" else len(split_words(text))


def _words(words: WordCount) -> profile.CategoricalProfile:
    if not words.counts:
        raise DataError("no text of the training split has a word", 'set data.tokens = "bytes"')
    names = words.most(len(words.counts))
    totals = np.array([words.counts[name] for name in names], dtype=np.int64)
    return profile.categorical_of("words", totals, int(totals.sum()), names)
