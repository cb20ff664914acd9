"""Read a project: the file, then ``YARD_…`` variables, then what the caller says; all mistakes at once."""

import json
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from modelyard.spec.data_checks import data_mistakes
from modelyard.spec.errors import Mistake, NotFoundError, ProjectError, nearest
from modelyard.spec.lines import locate
from modelyard.spec.other_names import other_name
from modelyard.spec.project import Project, ProjectFile
from modelyard.spec.section import Section
from modelyard.spec.task_checks import task_mistakes
from modelyard.spec.training import TrainSection
from modelyard.spec.training_checks import training_mistakes
from modelyard.spec.urls import CREDENTIALS, is_url, local_path, secret_in

PREFIX = "YARD_"
NOT_FIELDS = frozenset({"YARD_DEBUG"})
"""Variables that steer the program itself."""

SOURCES = ("arrow", "csv", "images", "jsonl", "npz", "parquet", "text")
"""Built-in sources that read ``data.path``; others may be installed."""


class Source(IntEnum):
    """Who may overrule whom: a later one wins."""

    DEFAULT = 0
    FILE = 1
    ENVIRONMENT = 2
    CALLER = 3


NAMES = {Source.FILE: "yard.toml", Source.ENVIRONMENT: "environment", Source.CALLER: "command line"}


def read_project(
    path: str | Path = "yard.toml",
    overrides: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    choices: Mapping[str, Collection[str]] | None = None,
) -> Project:
    """Read ``path`` (a file, or a folder that holds ``yard.toml``) and lay the overrides over it.

    ``overrides`` maps dotted fields to values, e.g. ``{"train.optimizer.lr": 0.01}``; the name of a
    field of ``[train]`` may stand alone (``epochs``). ``choices`` are the words that a field may take
    beyond its type, e.g. the names of the engines that are installed.

    Raises NotFoundError where there is no file and ProjectError with every mistake.
    """
    file = Path(path)
    file = file / "yard.toml" if file.is_dir() else file
    text = _text(file)
    content, lines = _parse(text, file.name)
    merged = _Merged(content, lines, file.name)
    for name, value in sorted((os.environ if environment is None else environment).items()):
        if name.startswith(PREFIX) and name not in NOT_FIELDS:
            merged.set(_field_of_variable(name), _literal(value), Source.ENVIRONMENT, name)
    for key, value in (overrides or {}).items():
        merged.set(_full_name(key), value, Source.CALLER, key)
    project, mistakes = _validate(merged, file.resolve().parent)
    mistakes += list(_cross_checks(merged, file.resolve().parent, choices or {}))
    if mistakes or project is None:
        raise ProjectError(
            sorted(mistakes, key=lambda mistake: (mistake.source, mistake.line or 0))
        )
    return project


def override(text: str) -> tuple[str, Any]:
    """``train.epochs=3`` from a command line as a pair; the value is read as TOML, else as a plain word."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ProjectError(
            [
                Mistake(
                    text,
                    "is not an override",
                    "field=value, e.g. train.epochs=3",
                    "",
                    "command line",
                )
            ]
        )
    return key.strip(), _literal(value.strip())


def field_names() -> list[str]:
    """Every dotted field of the project file."""
    return sorted(_fields(ProjectFile, ""))


def _fields(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        nested = _section_of(field.annotation)
        if nested and get_origin(field.annotation) is not tuple:  # [[tables]] are one field
            yield from _fields(nested, f"{prefix}{name}.")


def _section_of(annotation: Any) -> type[Section] | None:
    """The section in ``Section``, ``Section | None`` or ``tuple[Section, ...]``."""
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(
            f"no project file at {file}",
            "go to the project's folder, name it with --project, or make one with `yard new my-project`",
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ProjectError(
            [Mistake("file", "is not UTF-8 text", "UTF-8", "", file.name, line)]
        ) from error
    except OSError as error:
        raise NotFoundError(
            f"{file} cannot be read: {error.strerror}",
            "check that it is a file and its permissions",
        ) from error


def _parse(text: str, name: str) -> tuple[dict[str, Any], dict[tuple[str | int, ...], int]]:
    try:
        return tomllib.loads(text), locate(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"line (\d+)", str(error))
        line = int(place.group(1)) if place else text.count("\n") + 1
        problem = re.sub(r" \(at .*\)$", "", str(error))
        written = text.splitlines()[line - 1].strip() if line <= len(text.splitlines()) else ""
        raise ProjectError(
            [
                Mistake(
                    "syntax",
                    f"{problem} in {written!r}",
                    "TOML: text in quotes, one key = value a line",
                    "",
                    name,
                    line,
                )
            ]
        ) from error


def _literal(text: str) -> Any:
    """A value from a command line or a variable: TOML where it parses, else the word itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _field_of_variable(name: str) -> str:
    """``YARD_TRAIN_BATCH_SIZE`` → ``train.batch_size``."""
    wanted = name.removeprefix(PREFIX).lower()
    known = {field.replace(".", "_"): field for field in field_names()}
    return known.get(wanted, wanted.replace("_", ".", 1))


def _full_name(key: str) -> str:
    return f"train.{key}" if "." not in key and key in TrainSection.model_fields else key


class _Merged:
    """The content with overrides laid over it, and for each field where its value came from."""

    def __init__(
        self, content: dict[str, Any], lines: dict[tuple[str | int, ...], int], name: str
    ) -> None:
        self.content = content
        self._lines = lines
        self._name = name
        self._origin: dict[tuple[str | int, ...], str] = {}

    def set(self, field: str, value: Any, source: Source, written: str) -> None:
        *parents, last = field.split(".")
        table = self.content
        for parent in parents:
            inner = table.get(parent)
            if not isinstance(inner, dict):
                inner = table[parent] = {}
            table = inner
        table[last] = value
        self._origin[tuple(field.split("."))] = f"{NAMES[source]} ({written})"

    def get(self, field: str, default: Any = None) -> Any:
        value: Any = self.content
        for part in field.split("."):
            if not isinstance(value, dict) or part not in value:
                return default
            value = value[part]
        return value

    def mistake(
        self, where: tuple[str | int, ...], problem: str, expected: str = "", suggestion: str = ""
    ) -> Mistake:
        """A mistake with its place: an override, the line of the field, or of the nearest table around it."""
        dotted = ".".join(map(str, where))
        for length in range(len(where), 0, -1):
            if origin := self._origin.get(where[:length]):
                return Mistake(dotted, problem, expected, suggestion, origin)
        line = next(
            (self._lines[where[:n]] for n in range(len(where), 0, -1) if where[:n] in self._lines),
            1,
        )
        return Mistake(dotted, problem, expected, suggestion, self._name, line)


def _validate(merged: _Merged, root: Path) -> tuple[Project | None, list[Mistake]]:
    """Strict: a number in quotes is a mistake, as TOML has both."""
    body = json.dumps({**merged.content, "root": str(root)}, default=str)
    try:
        return Project.model_validate_json(body, strict=True), []
    except ValidationError as error:
        return None, [_explain(merged, item) for item in error.errors(include_url=False)]


def _explain(merged: _Merged, item: Any) -> Mistake:
    """One of pydantic's errors as a mistake in our words."""
    where: tuple[str | int, ...] = tuple(item["loc"])
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "missing":
        return merged.mistake(where, "is missing", _description(where))
    if kind == "extra_forbidden":
        siblings = _siblings(where)
        close = nearest(str(where[-1]), siblings) if siblings else ""
        return merged.mistake(
            where, "unknown field", "one of " + ", ".join(siblings) if siblings else "", close
        )
    shown = json.dumps(value, default=str) if not isinstance(value, str) else repr(value)
    if len(shown) > 60:
        shown = shown[:59] + "…"
    if kind == "literal_error":
        words = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return merged.mistake(
            where,
            f"{shown} is not possible",
            " or ".join(map(repr, words)),
            other_name(str(value), words) or nearest(str(value), words),
        )
    message = item["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if kind == "string_pattern_mismatch":
        message = "lower-case letters, digits and hyphens, at most 63"
        return merged.mistake(
            where,
            f"{shown} is not possible",
            message,
            re.sub(r"[^a-z0-9]+", "-", str(value).lower()).strip("-"),
        )
    return merged.mistake(where, f"{shown} is not possible", message)


def _model_at(where: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The section that holds the field at ``where``."""
    section: type[BaseModel] = ProjectFile
    for key in (key for key in where[:-1] if not isinstance(key, int)):
        field = section.model_fields.get(str(key))
        nested = _section_of(field.annotation) if field else None
        if nested is None:
            return None
        section = nested
    return section


def _siblings(where: tuple[str | int, ...]) -> list[str]:
    section = _model_at(where)
    return list(section.model_fields) if section else []


def _description(where: tuple[str | int, ...]) -> str:
    section = _model_at(where)
    field = section.model_fields.get(str(where[-1])) if section else None
    if field is None:
        return ""
    return (field.description or f"a table [{'.'.join(map(str, where))}]").rstrip(".")


def _cross_checks(
    merged: _Merged, root: Path, choices: Mapping[str, Collection[str]]
) -> Iterator[Mistake]:
    """What no single field can know; made on the raw content, so that they are reported beside the others."""
    known = dict(choices)
    yield from _source(merged, known.pop("data.source", SOURCES))
    yield from _words(merged, known)
    size, workers = merged.get("train.batch_size", 32), merged.get("train.workers", 1)
    if _is_int(size) and _is_int(workers) and 0 < size < workers:
        yield merged.mistake(
            ("train", "batch_size"),
            f"{size} samples cannot be divided among {workers} workers",
            f"at least {workers}",
        )
    parts = [merged.get(f"data.split.{name}", 0.15) for name in ("validation", "test")]
    if all(isinstance(part, float | int) for part in parts) and sum(parts) >= 1:
        yield merged.mistake(
            ("data", "split"),
            f"validation and test take {sum(parts):g} of the data",
            "less than 1 together",
        )
    if merged.get("train.max_cost") and not merged.get("train.price_per_worker_hour"):
        yield merged.mistake(
            ("train", "max_cost"),
            "says nothing without a price",
            "train.price_per_worker_hour beside it, e.g. 2.50",
        )
    yield from data_mistakes(merged.get, merged.mistake)
    yield from training_mistakes(merged.get, merged.mistake)
    yield from task_mistakes(merged.get, merged.mistake, root)
    yield from _paths(merged, root)


def _words(merged: _Merged, choices: Mapping[str, Collection[str]]) -> Iterator[Mistake]:
    for field, words in choices.items():
        value = merged.get(field)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and item not in words:
                where = tuple(field.split("."))
                yield merged.mistake(
                    where,
                    f"{item!r} is not available",
                    " or ".join(map(repr, words)),
                    nearest(item, words),
                )


def _source(merged: _Merged, sources: Collection[str]) -> Iterator[Mistake]:
    source, path = merged.get("data.source"), merged.get("data.path", "")
    if not isinstance(source, str) or ":" in source:
        return
    if source not in sources:
        expected = ", ".join(map(repr, sorted(sources))) + " or 'module:function'"
        yield merged.mistake(
            ("data", "source"), f"{source!r} is not a source", expected, nearest(source, sources)
        )
    elif isinstance(path, str) and not path and source in SOURCES:
        yield merged.mistake(
            ("data", "path"), "is missing", "the folder, file or URL that holds the data"
        )


def _paths(merged: _Merged, root: Path) -> Iterator[Mistake]:
    path = merged.get("data.path", "")
    path = local_path(path) if isinstance(path, str) else path
    if isinstance(path, str) and is_url(path):
        if secret := secret_in(path):
            yield merged.mistake(
                ("data", "path"), f"holds {secret}", f"a URL without it; {CREDENTIALS}"
            )
    elif isinstance(path, str) and path and not (root / path).exists():
        beside = [entry.name for entry in root.iterdir() if not entry.name.startswith(".")]
        yield merged.mistake(
            ("data", "path"),
            f"{path!r} does not exist in {root}",
            "",
            nearest(path.strip("/"), beside),
        )
    build = merged.get("model.build")
    if isinstance(build, str) and ":" in build:
        if merged.get("model.framework", "pytorch") != "pytorch":
            yield merged.mistake(
                ("model", "framework"),
                f"is for built-in models, and model.build is {build!r}",
                "nothing: a function's framework is seen from the model that it returns",
            )
        module = build.partition(":")[0]
        file = root / Path(*module.split("."))
        if not file.with_suffix(".py").exists() and not (file / "__init__.py").exists():
            files = [f"{entry.stem}:{build.partition(':')[2]}" for entry in root.glob("*.py")]
            yield merged.mistake(
                ("model", "build"),
                f"there is no {module.replace('.', '/')}.py in {root}",
                "",
                nearest(build, files),
            )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
