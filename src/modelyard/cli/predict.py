"""``yard predict``: an image, a JSON row, a CSV table or a folder in; labels and probabilities out."""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


def arguments(parser: argparse.ArgumentParser) -> None:
    from modelyard.cli.output import project_arguments

    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image file, folder, .json row(s), .csv, '{\"age\": 3}', or - for standard input",
    )
    parser.add_argument(
        "--model",
        default="",
        metavar="REF",
        help="open this version here, e.g. digits:3 (default: ask the running service)",
    )
    project_arguments(parser, overrides=False)


def run(parsed: argparse.Namespace) -> int:
    from modelyard.cli.output import open_project, print_json, print_table
    from modelyard.inquiry import predict

    project, _ = open_project(parsed)
    named = [pair for text in parsed.inputs for pair in _read(text)]
    answers: list[dict[str, Any]] = []
    for kind in (bytes, object):
        # Images go one request each, rows together; the order of the answers is the order of the words.
        chosen = [
            index
            for index, (_, item) in enumerate(named)
            if isinstance(item, bytes) == (kind is bytes)
        ]
        found = (
            predict(project, [named[index][1] for index in chosen], reference=parsed.model)
            if chosen
            else []
        )
        answers += [
            {"index": index, "input": named[index][0], **answer}
            for index, answer in zip(chosen, found, strict=True)
        ]
    answers.sort(key=lambda answer: answer["index"])
    rows = [{key: value for key, value in answer.items() if key != "index"} for answer in answers]
    if parsed.json:
        print_json(rows)
    else:
        print_table(
            [{k: v for k, v in row.items() if k != "probabilities"} for row in rows],
            empty="nothing to predict",
        )
    return 0


def _read(text: str) -> list[tuple[str, Any]]:
    """One word of the command line as named inputs. Raises UsageError, DataError, NotFoundError."""
    from modelyard.spec.errors import NotFoundError, UsageError

    if text == "-":
        return _content("standard input", sys.stdin.buffer.read())
    if text.lstrip().startswith(("{", "[")):
        return _json("input", text)
    path = Path(text)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGES)
        if not files:
            raise UsageError(
                f"{path} holds no images", f"kinds that are read: {', '.join(sorted(IMAGES))}"
            )
        return [(str(file), file.read_bytes()) for file in files]
    if not path.exists():
        raise NotFoundError(
            f"no file or folder {text}",
            "give an image, a .json, a .csv, a folder, or a JSON row in quotes",
        )
    if path.suffix.lower() == ".csv":
        return _csv(path)
    if path.suffix.lower() == ".json":
        return _json(str(path), path.read_text(encoding="utf-8"))
    return [(str(path), path.read_bytes())]


def _content(name: str, content: bytes) -> list[tuple[str, Any]]:
    return (
        _json(name, content.decode()) if content.lstrip()[:1] in (b"{", b"[") else [(name, content)]
    )


def _json(name: str, text: str) -> list[tuple[str, Any]]:
    import json

    from modelyard.spec.errors import DataError

    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{name} is not JSON: {error}", 'a row looks like {"age": 52, "smoker": true}'
        ) from error
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [(f"{name}[{index}]", row) for index, row in enumerate(value)]
    return [(name, value)]


def _csv(path: Path) -> list[tuple[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        sample = file.read(64 * 1024)
        file.seek(0)
        delimiter = max(",;\t|", key=sample.splitlines()[0].count) if sample else ","
        return [
            (f"{path}:{number}", row)
            for number, row in enumerate(csv.DictReader(file, delimiter=delimiter), 2)
        ]
