"""Writes plain values as YAML for people: mappings, lists, strings, numbers. It reads nothing."""

import json
import re
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./ -]*[A-Za-z0-9_./]|[A-Za-z_/]")
_WORDS_WITH_A_MEANING = frozenset(("true", "false", "yes", "no", "on", "off", "null", "y", "n"))


def to_yaml(value: dict[str, Any], comment: str = "") -> str:
    """A mapping as a YAML document; ``comment`` stands above it."""
    heading = "".join(f"# {line}\n" for line in comment.splitlines())
    return heading + "\n".join(_block(value)) + "\n"


def _block(value: Any) -> list[str]:
    if isinstance(value, dict) and value:
        return [line for key, item in value.items() for line in _entry(f"{_scalar(key)}:", item)]
    if isinstance(value, (list, tuple)) and value:
        return [line for item in value for line in _item(item)]
    return [_scalar(value)]


def _entry(key: str, item: Any) -> list[str]:
    if isinstance(item, (dict, list, tuple)) and item:
        return [key, *(f"  {line}" for line in _block(item))]
    return [f"{key} {_scalar(item)}"]


def _item(item: Any) -> list[str]:
    first, *rest = _block(item)
    return [f"- {first}", *(f"  {line}" for line in rest)]


def _scalar(value: Any) -> str:
    """JSON is YAML too, so whatever is not plainly a word is written as JSON writes it."""
    plain = (
        isinstance(value, str)
        and _PLAIN.fullmatch(value)
        and value.lower() not in _WORDS_WITH_A_MEANING
    )
    if plain:
        return str(value)
    if isinstance(value, str) and '"' in value and value.isascii() and value.isprintable():
        return "'" + value.replace("'", "''") + "'"
    # Beyond ASCII JSON and YAML differ in what they escape; \uXXXX is read alike, except for pairs.
    return json.dumps(value, ensure_ascii=not _needs_pairs(value))


def _needs_pairs(value: Any) -> bool:
    return isinstance(value, str) and any(ord(letter) > 0xFFFF for letter in value)
