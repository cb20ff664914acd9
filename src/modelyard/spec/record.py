"""What every record can do: be written down as JSON, read again, and shown in a notebook."""

import html
from typing import Any, Self

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A frozen value that is kept as JSON and shows itself in a notebook."""

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        return msgspec.json.decode(text, type=cls)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(_short(getattr(self, name)))}</td></tr>"
            for name in self.__struct_fields__
        )
        return f"<table><caption><b>{type(self).__name__}</b></caption>{rows}</table>"


def _short(value: Any, limit: int = 300) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"
