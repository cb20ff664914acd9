"""Mistakes of ``[data]`` that no single field can know, with their places in the project file."""

from collections.abc import Callable, Iterator
from typing import Any

from modelyard.spec.errors import Mistake

_TABLES = ("csv", "jsonl", "parquet", "arrow")
"""Built-in sources with columns."""
_OTHERS = ("images", "npz", "text")


def data_mistakes(get: Callable[..., Any], mistake: Callable[..., Mistake]) -> Iterator[Mistake]:
    """Of samples of several parts: fields that do not fit together.

    ``get`` and ``mistake`` are those of the content that was read.
    """
    image, text, fuse = (get(f"data.{field}", "") for field in ("image", "text", "fuse"))
    if not image and not fuse:
        return
    field = "image" if image else "fuse"
    if get("data.source") in _OTHERS:
        wanted = f"one of {', '.join(map(repr, _TABLES))}"
        yield mistake(
            ("data", field), f"needs a table, which {get('data.source')!r} is not", wanted
        )
        return
    if fuse and not text and not image:
        yield mistake(
            ("data", "fuse"), "has no text to fuse", "data.text beside it, a column of texts"
        )
    if image and image == text:
        yield mistake(
            ("data", "text"), f"{text!r} is the column of pictures already", "another column"
        )
    for name, column in (("image", image), ("text", text)):
        if column and column == get("data.target", "label"):
            yield mistake(("data", name), f"{column!r} is the target", "a column that is an input")
    if image and get("data.keep", "pixels") == "files":
        yield mistake(
            ("data", "keep"), "keeps files of pictures that are a whole sample only", '"pixels"'
        )
