"""Writes docs/reference.md from the code: every command, every field, every exit code.

Run ``python docs/make_reference.py``; a test fails when the page is older than the code.
"""

import argparse
import os
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from modelyard.backends.families import FAMILIES, FRAMEWORKS
from modelyard.cli import COMMANDS
from modelyard.cli.__main__ import build_parser
from modelyard.spec.project import ProjectFile
from modelyard.spec.section import Section

PAGE = Path(__file__).parent / "reference.md"
HEAD = """\
# Reference
Written from the code by `python docs/make_reference.py`; do not edit it here.

## Exit codes
| code | meaning |
|---|---|
| 0 | done |
| 1 | failed; the message says why and what to do |
| 2 | wrong input: the project file, an override, or the words of the command |
| 130 | interrupted; the same command goes on where it stopped |

## Precedence
Defaults, then `yard.toml`, then `YARD_…` variables (`YARD_TRAIN_BATCH_SIZE` is `train.batch_size`), then
the command line or Python. A later one wins. `YARD_DEBUG=1` shows the trace of an unexpected error.
"""


def page() -> str:
    """The whole page."""
    os.environ["COLUMNS"] = "100"  # argparse breaks its lines at the terminal's width
    return "\n".join([HEAD, *_fields(), *_models(), *_commands()]) + "\n"


def _fields() -> list[str]:
    lines = ["## yard.toml", "| field | type | default | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{path}` | {kind} | {default} | {text} |"
        for path, kind, default, text in _rows(ProjectFile, "")
    ]
    return [*lines, ""]


def _rows(section: type[BaseModel], prefix: str) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, field in section.model_fields.items():
        nested = next(
            (o for o in (field.annotation, *get_args(field.annotation)) if _is_section(o)), None
        )
        default = "required" if field.default is PydanticUndefined else _shown(field.default)
        if nested:
            several = get_origin(field.annotation) is tuple
            if several:
                rows.append((f"{prefix}{name}", "array of tables", "none", field.description or ""))
            elif field.default is None:
                rows.append((f"{prefix}{name}", "table", "none", "Absent: off."))
            rows += _rows(nested, f"{prefix}{name}{'[]' if several else ''}.")
        else:
            rows.append(
                (
                    prefix + name,
                    _kind(field.annotation),
                    default,
                    (field.description or "").replace("|", "\\|"),
                )
            )
    return rows


def _is_section(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Section)


def _shown(value: Any) -> str:
    return "none" if value is None else f"`{value!r}`".replace("'", '"')


def _kind(annotation: Any) -> str:
    words = [str(item) for item in get_args(annotation)]
    if words and all(isinstance(item, str) for item in get_args(annotation)):
        return " \\| ".join(f"`{word}`" for word in words)
    text = str(annotation)
    names = {
        "dict": "table",
        "tuple": "array",
        "list": "array",
        "bool": "true/false",
        "int": "whole number",
        "float": "number",
        "str": "text",
    }
    return next((label for name, label in names.items() if name in text), "any")


def _models() -> list[str]:
    lines = [
        "## Built-in models",
        f"`model.build` with `model.framework` ({', '.join(FRAMEWORKS)}); see [models](models.md).",
        "",
        "| build | takes | `model.args` | meaning | default |",
        "|---|---|---|---|---|",
    ]
    for name, family in FAMILIES.items():
        if family.old_name_of:
            lines.append(f"| `{name}` | | | old name of `{family.old_name_of}` | |")
            continue
        for place, (key, arg) in enumerate(family.args.items()):
            first = (f"`{name}`", family.takes) if not place else ("", "")
            default = list(arg.default) if isinstance(arg.default, tuple) else arg.default
            lines.append(
                f"| {first[0]} | {first[1]} | `{key}` | {arg.meaning} | {_shown(default)} |"
            )
    return [*lines, ""]


def _commands() -> list[str]:
    parser = build_parser("*")
    actions = next(
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    lines = ["## Commands"]
    for name in COMMANDS:
        lines += [
            f"### yard {name}",
            "```text",
            actions.choices[name].format_help().strip(),
            "```",
            "",
        ]
    return lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
