"""Texts become sequences of numbers: words of a vocabulary that the training split gave, or bytes."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.spec.errors import DataError
from modelyard.spec.signature import TextInput

_WORDS = re.compile(r"\w+|[^\w\s]")
_MOST_KNOWN = 1_000_000
"""Different words that are counted at a time; above that, those seen once so far are forgotten."""


def split_words(text: str) -> list[str]:
    """Runs of letters and digits, and every other sign by itself, in lower case."""
    return _WORDS.findall(text.lower())


def encode_texts(spec: TextInput, items: Sequence[Any]) -> NDArray[np.int32]:
    """Texts -> int32 (n, length): the numbers of their first tokens, then zeros.

    An item is a string, its bytes in UTF-8, or ``{"text": …}``. Raises DataError naming the item.
    """
    numbers = np.zeros((len(items), spec.length), dtype=np.int32)
    known = {word: place + 2 for place, word in enumerate(spec.words)}
    for place, item in enumerate(items):
        try:
            text = text_of(item)
        except DataError as error:
            if len(items) == 1:
                raise
            raise DataError(f"item {place}: {error.what}", error.mend) from error
        if spec.tokens == "bytes":
            # A byte takes a token at least, so what is cut off here is cut off anyway.
            row = [byte + 1 for byte in text[: spec.length].encode()[: spec.length]]
        else:
            row = [known.get(word, 1) for word in split_words(text)[: spec.length]]
        numbers[place, : len(row)] = row
    return numbers


def text_of(item: Any) -> str:
    """The text that was sent. Raises DataError for anything else."""
    if isinstance(item, dict) and set(item) == {"text"}:
        item = item["text"]
    if isinstance(item, bytes):
        try:
            item = item.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError("the text is not UTF-8", "send it in UTF-8") from error
    if not isinstance(item, str):
        raise DataError(
            f"a text is sent as a string, not as {type(item).__name__}",
            'send "…" or {"text": "…"} as JSON, or the text itself as text/plain',
        )
    # Half of a surrogate pair is no character: it has no bytes either.
    return item.encode("utf-8", "replace").decode()


class WordCount:
    """How often each word occurs; for texts of any length in bounded memory.

    Exact up to a million different words; beyond that a word that is rare at first may be counted too low.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.counts.update(split_words(text))
        if len(self.counts) > _MOST_KNOWN:
            self.counts = Counter({w: n for w, n in self.counts.items() if n > 1})

    def most(self, count: int) -> tuple[str, ...]:
        """The ``count`` most frequent words, equally frequent ones by alphabet."""
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return tuple(word for word, _ in ordered[:count])
