"""Natural input becomes the model's tensor: the same code before training and in the service.

Two steps: ``store_form`` (decode, convert, resize: what is worth doing once and keeping) and
``finish`` (the arithmetic on whole batches). ``encode`` is one after the other. In training, a backend
finishes images itself, on its device; that gives the same numbers up to the rounding of float32.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.data.image_file import decode_image
from modelyard.data.mixed import arrays_of_rows, column_names
from modelyard.data.pixels import FORMATS, MEDIA_TYPES
from modelyard.data.table_row import EXPECTED, encode_rows, kind_of
from modelyard.data.text import encode_texts
from modelyard.spec.errors import DataError
from modelyard.spec.signature import (
    BooleanColumn,
    CategoricalColumn,
    Column,
    ImageInput,
    MixedInput,
    NaturalInput,
    TableInput,
    TensorInput,
    TextInput,
)
from modelyard.tasks.parts import finished_parts, pack, stored_parts, unpack

_TEXT_OBJECT = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
    "additionalProperties": False,
}


def encode(spec: NaturalInput, items: Sequence[Any]) -> NDArray[Any]:
    """Natural input -> model form, float32 ``(n, *spec.shape)``; int64 for texts.

    Items are image files as bytes, rows ``{column: value}``, nested lists of numbers, or texts. Of
    samples of several parts they are rows too, the picture in its column as bytes or base64, and what
    comes out is uint8 ``(n, bytes of a row)``: see ``modelyard.tasks.parts``.
    Raises DataError naming the item, the field, the value and what was expected.
    """
    return finish(spec, store_form(spec, items))


def store_form(spec: NaturalInput, items: Sequence[Any]) -> NDArray[Any]:
    """Natural input -> the form that prepared arrays hold: uint8 for images, int32 for texts, else float32."""
    if isinstance(spec, MixedInput):
        return pack(stored_parts(spec), arrays_of_rows(spec, items))
    if isinstance(spec, TextInput):
        return encode_texts(spec, items)
    if isinstance(spec, TableInput):
        return encode_rows(spec, items)
    dtype = np.uint8 if isinstance(spec, ImageInput) else np.float32
    stored = np.empty((len(items), *spec.shape), dtype=dtype)
    for place, item in enumerate(items):
        try:
            stored[place] = (
                _image(spec, item) if isinstance(spec, ImageInput) else _tensor(spec, item)
            )
        except DataError as error:
            if len(items) == 1:
                raise
            raise DataError(f"item {place}: {error.what}", error.mend) from error
    return stored


def finish(spec: NaturalInput, stored: NDArray[Any]) -> NDArray[Any]:
    """Stored form -> model form, both ``(n, *spec.shape)``; whole-array arithmetic in float32."""
    if isinstance(spec, MixedInput):
        arrays = unpack(stored_parts(spec), stored)
        finished = {name: finish(part, arrays[name]) for name, part in spec.parts.items()}
        return pack(finished_parts(spec), finished)
    if isinstance(spec, TextInput):
        return stored.astype(np.int64)
    if isinstance(spec, TableInput):
        return np.asarray(stored, dtype=np.float32)
    if isinstance(spec, TensorInput):
        result: NDArray[np.float32] = stored.astype(np.float32)
        if spec.mean != 0.0:
            result -= np.float32(spec.mean)
        if spec.std != 1.0:
            result /= np.float32(spec.std)
        return result
    # (x / 255 - mean) / std as one multiplication and one addition, in place.
    scale = np.array(spec.scale, dtype=np.float32).reshape(-1, 1, 1)
    shift = np.array(spec.shift, dtype=np.float32).reshape(-1, 1, 1)
    pixels: NDArray[np.float32] = stored.astype(np.float32)
    pixels *= scale
    pixels += shift
    return pixels


def describe(spec: NaturalInput) -> dict[str, Any]:
    """What a caller must send, JSON-able: ``kind``, ``summary``, a JSON ``schema`` and an ``example``.

    Images have ``media_types`` in place of a schema.
    """
    if isinstance(spec, ImageInput):
        return {
            "kind": "image",
            "summary": f"one image file ({', '.join(FORMATS)}) of any size; it is resized to "
            f"{spec.width} × {spec.height} pixels and converted to {spec.color}",
            "media_types": list(MEDIA_TYPES),
            "shape": list(spec.shape),
            "example": "image.png",
        }
    if isinstance(spec, TableInput):
        schema, example = _table_schema(spec)
        return {
            "kind": "table",
            "summary": f"one row: an object with {len(spec.columns)} columns; null where a value is missing",
            "schema": schema,
            "example": example,
        }
    if isinstance(spec, MixedInput):
        return _describe_mixed(spec)
    if isinstance(spec, TextInput):
        return {
            "kind": "text",
            "summary": f"one text: a string, of which the first {spec.length} {spec.tokens} count",
            "schema": {"anyOf": [{"type": "string"}, _TEXT_OBJECT]},
            "example": "a text",
        }
    return {
        "kind": "tensor",
        "summary": f"numbers in nested lists of shape {list(spec.shape)}",
        "schema": _nested_schema(spec.shape),
        "shape": list(spec.shape),
        "example": np.zeros(spec.shape).tolist()
        if np.prod(spec.shape) <= 4096
        else f"zeros{list(spec.shape)}",
    }


def _describe_mixed(spec: MixedInput) -> dict[str, Any]:
    """One object of all columns; what a table needs not is a string."""
    schema, example = _table_schema(spec.table) if spec.table else ({"properties": {}}, {})
    own: dict[str, Any] = {}
    if spec.image is not None:
        own[spec.image_column] = {
            "type": "string",
            "contentEncoding": "base64",
            "description": f"an image file ({', '.join(FORMATS)}) in base64; it is resized to "
            f"{spec.image.width} × {spec.image.height} pixels",
        }
        example = {spec.image_column: "iVBORw0KGgo…", **example}
    if spec.text is not None:
        own[spec.text_column] = {
            "type": "string",
            "description": f"a text, of which the first {spec.text.length} {spec.text.tokens} count",
        }
        example = {spec.text_column: "a text", **example}
    names = column_names(spec)
    return {
        "kind": "mixed",
        "summary": f"one row: an object with the columns {', '.join(names)}"
        + (f"; {spec.image_column} is a picture's file in base64" if spec.image else ""),
        "schema": {
            "type": "object",
            "properties": own | schema["properties"],
            "required": names,
        },
        "example": example,
    }


def _table_schema(spec: TableInput) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of one row: its JSON schema, and an example."""
    return {
        "type": "object",
        "properties": {column.name: _column_schema(column) for column in spec.columns},
        "required": [column.name for column in spec.columns],
    }, {column.name: _example(column) for column in spec.columns}


def _image(spec: ImageInput, item: Any) -> NDArray[np.uint8]:
    if not isinstance(item, bytes | bytearray | memoryview):
        raise DataError(
            f"an image is sent as the bytes of its file, not as {type(item).__name__}",
            f"send a {', '.join(FORMATS)} file",
        )
    return decode_image(spec, bytes(item))


def _tensor(spec: TensorInput, item: Any) -> NDArray[np.float32]:
    expected = f"numbers in nested lists of shape {list(spec.shape)}"
    try:
        values = np.asarray(item)
    except ValueError as error:
        raise DataError("the nested lists are ragged", f"send {expected}") from error
    if values.dtype.kind not in "biuf":
        raise DataError("the input holds something that is not a number", f"send {expected}")
    if values.shape != spec.shape:
        raise DataError(f"the input has shape {list(values.shape)}", f"send {expected}")
    with np.errstate(over="ignore"):  # refused below
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        place = [int(axis) for axis in np.argwhere(~np.isfinite(values))[0]]
        raise DataError(
            f"the number at {place} is missing, infinite or too large", f"send {expected}"
        )
    return values


def _column_schema(column: Column) -> dict[str, Any]:
    if isinstance(column, BooleanColumn):
        return {"type": ["boolean", "null"], "description": EXPECTED["boolean"]}
    if isinstance(column, CategoricalColumn):
        known = ", ".join(column.categories[:20]) + (" …" if len(column.categories) > 20 else "")
        return {
            "type": ["string", "number", "boolean", "null"],
            "description": f"one of {known}; another word counts as unknown",
        }
    return {"type": ["number", "string", "null"], "description": EXPECTED[kind_of(column)]}


def _example(column: Column) -> Any:
    if isinstance(column, BooleanColumn):
        return True
    if isinstance(column, CategoricalColumn):
        return column.categories[0] if column.categories else None
    return float(f"{column.fill:.6g}")


def _nested_schema(shape: tuple[int, ...]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "number"}
    for length in reversed(shape):
        schema = {"type": "array", "items": schema, "minItems": length, "maxItems": length}
    return schema
