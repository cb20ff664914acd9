"""Rows whose columns are a picture, a text and a table's: each part by the code that reads it alone."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.data.image_file import decode_image
from modelyard.data.table_row import encode_rows
from modelyard.data.text import encode_texts
from modelyard.spec.errors import DataError, did_you_mean
from modelyard.spec.signature import ImageInput, MixedInput

_BASE64 = "a picture is sent as its file's bytes in base64, or as a data URL of them"


def arrays_of_rows(spec: MixedInput, rows: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """Rows ``{column: value}`` -> stored form of each part, by its name.

    Raises DataError naming row, column and value.
    """
    for place, row in enumerate(rows):
        where = f"row {place}: " if len(rows) > 1 else ""
        if not isinstance(row, Mapping):
            raise DataError(
                f"{where}a row must be an object of column names and values, not {type(row).__name__}",
                f"its columns are {', '.join(map(repr, column_names(spec)))}",
            )
        for column in (spec.image_column, spec.text_column):
            if column and column not in row:
                hint = did_you_mean(column, [str(name) for name in row])
                raise DataError(
                    f"{where}no column {column!r}{hint}",
                    f"give every column: {', '.join(map(repr, column_names(spec)))}",
                )
    found: dict[str, NDArray[Any]] = {}
    if spec.image is not None:
        found["image"] = _pictures(spec.image, spec.image_column, rows)
    if spec.text is not None:
        found["text"] = encode_texts(spec.text, _texts(spec.text_column, rows))
    if spec.table is not None:
        found["table"] = encode_rows(spec.table, rows)
    return found


def column_names(spec: MixedInput) -> list[str]:
    """What a row must have, in the order of the parts."""
    table = spec.table.columns if spec.table else ()
    return [*filter(None, (spec.image_column, spec.text_column)), *(c.name for c in table)]


def _texts(column: str, rows: Sequence[Any]) -> list[str]:
    texts = []
    for place, row in enumerate(rows):
        value = row[column]
        if not isinstance(value, str):
            where = f"row {place}: " if len(rows) > 1 else ""
            raise DataError(
                f"{where}column {column!r}: a text is sent as a string, not as {type(value).__name__}",
                'send "" where there is no text',
            )
        texts.append(value)
    return texts


def _pictures(spec: ImageInput, column: str, rows: Sequence[Any]) -> NDArray[np.uint8]:
    pixels = np.empty((len(rows), *spec.shape), np.uint8)
    for place, row in enumerate(rows):
        try:
            pixels[place] = decode_image(spec, _bytes(row[column]))
        except DataError as error:
            where = f"row {place}: " if len(rows) > 1 else ""
            raise DataError(f"{where}column {column!r}: {error.what}", error.mend) from error
    return pixels


def _bytes(value: Any) -> bytes:
    """Of a picture's file, as it came or in base64 (RFC 4648; RFC 2397 for data URLs)."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        raise DataError(f"{type(value).__name__} is no picture", _BASE64)
    head, comma, rest = value.partition(",")
    text = rest if comma and head.startswith("data:") else value
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"this is no base64: {error}", _BASE64) from error
