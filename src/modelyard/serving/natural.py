"""Plain input on the wire: image files, table rows as JSON or CSV, nested lists, alone or in a form.

``curl --data-binary @file`` claims to send a form whatever the file is, so the bytes are looked at
first and the Content-Type only where they do not tell.
"""

import csv
import io
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from modelyard.data.preprocess import describe
from modelyard.spec.errors import RequestError
from modelyard.spec.signature import (
    ImageInput,
    MixedInput,
    NaturalInput,
    TableInput,
    TensorInput,
    TextInput,
)


class WrongKind(RequestError):
    """The body is of a kind that this model does not take."""


_IMAGES = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a"),
    *(b"BM", b"II*\x00", b"MM\x00*"),
)
_MAX_PARTS = 1000


async def read_items(headers: Headers, body: bytes, natural: NaturalInput) -> list[Any]:
    """The items to predict, in order. Raises RequestError, WrongKind."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not body:
        raise RequestError("the body is empty", _example(natural))
    if kind != "multipart/form-data":
        return _items(kind, body, natural)
    items: list[Any] = []
    for part_kind, content in await _parts(headers, body):
        items += _items(part_kind, content, natural)
    if not items:
        raise RequestError("the form holds no file", _example(natural))
    return items


def _items(kind: str, body: bytes, natural: NaturalInput) -> list[Any]:
    image = _is_image(body)
    if isinstance(natural, ImageInput):
        if image or kind.startswith("image/") or kind == "application/octet-stream":
            return [body]
        raise WrongKind(
            "this model takes image files, the body is none that is known", _example(natural)
        )
    if image or kind.startswith("image/"):
        raise WrongKind("this model takes no images", _example(natural))
    if isinstance(natural, TextInput) and not _is_json(kind, body):
        return [body]
    if body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[") or kind == "application/json":
        return _json_items(body, natural)
    if isinstance(natural, TableInput):
        return _csv_items(body)
    raise WrongKind("this model takes JSON", _example(natural))


def _is_json(kind: str, body: bytes) -> bool:
    """A text may begin as JSON does; what says that it is plain text is believed."""
    if kind == "application/json":
        return True
    begins = body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    return kind != "text/plain" and begins in (b"{", b"[", b'"')


def _is_image(body: bytes) -> bool:
    return body.startswith(_IMAGES) or (body[:4] == b"RIFF" and body[8:12] == b"WEBP")


def _json_items(body: bytes, natural: NaturalInput) -> list[Any]:
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the JSON cannot be read: {error}", _example(natural)) from error
    except RecursionError as error:
        raise RequestError("the JSON is nested too deep") from error
    if isinstance(content, dict) and len(content) == 1:
        alone = (str, dict, list) if isinstance(natural, TextInput) else (dict, list)
        if isinstance(content.get("row"), alone):
            return [content["row"]]
        if isinstance(content.get("rows"), list):
            return list(content["rows"])
    if isinstance(natural, TensorInput):
        return content if _depth(content) > len(natural.shape) else [content]
    return content if isinstance(content, list) else [content]


def _depth(content: Any) -> int:
    depth = 0
    while isinstance(content, list):
        depth += 1
        content = content[0] if content else None
    return depth


def _csv_items(body: bytes) -> list[Any]:
    """One dict per line after the header; an empty cell is a missing value (None)."""
    try:
        reader = csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True)
        lines = [(reader.line_num, line) for line in reader if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(
            f"the body is neither JSON nor CSV: {error}", 'send {"row": {…}} or CSV with a header'
        ) from error
    header = [name.strip() for name in lines[0][1]] if lines else []
    if len(set(header)) != len(header):
        raise RequestError("a column name is twice in the CSV's header")
    for number, line in lines[1:]:
        if len(line) != len(header):
            raise RequestError(
                f"line {number} of the CSV has {len(line)} cells, its header has {len(header)}"
            )
    if len(lines) < 2:
        raise RequestError(
            "the CSV has no row after its header", 'send {"row": {…}} or CSV with a header'
        )
    return [
        {name: cell if cell.strip() else None for name, cell in zip(header, line, strict=True)}
        for _, line in lines[1:]
    ]


class _InMemory(MultiPartParser):
    spool_max_size = 1 << 40
    """The body is bounded and in memory already; nothing is spooled to disk."""


async def _parts(headers: Headers, body: bytes) -> list[tuple[str, bytes]]:
    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _InMemory(
        headers, once(), max_files=_MAX_PARTS, max_fields=_MAX_PARTS, max_part_size=len(body) + 1
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise RequestError(
            f"the form cannot be read: {getattr(error, 'message', 'it has no boundary')}"
        ) from error
    parts = []
    for _, value in form.multi_items():
        if isinstance(value, UploadFile):
            parts.append((value.content_type or "", await value.read()))
        elif value:
            parts.append(("", value.encode()))
    await form.close()
    return parts


def _example(natural: NaturalInput) -> str:
    summary = describe(natural)["summary"]
    if isinstance(natural, ImageInput):
        return f"send {summary}, e.g. curl --data-binary @picture.png or curl -F file=@picture.png"
    form = '{"row": …}, {"rows": […]}'
    if isinstance(natural, MixedInput):
        return f"send {form} as JSON; {summary}"
    if isinstance(natural, TextInput):
        return f'send {{"text": "…"}}, {{"rows": […]}}, or the text itself as text/plain; {summary}'
    more = ", or CSV with a header" if isinstance(natural, TableInput) else ""
    return f"send {form}{more}; {summary}"
