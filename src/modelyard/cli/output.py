"""What every command shares: reading the project, and printing records as a table or as JSON."""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelyard.spec.project import Project
from modelyard.store import Store, open_store


def project_arguments(parser: argparse.ArgumentParser, *, overrides: bool = True) -> None:
    """``--project`` and, where they make sense, ``field=value`` words."""
    parser.add_argument(
        "--project",
        default=".",
        metavar="PATH",
        help="the project's folder or file (default: here)",
    )
    if overrides:
        parser.add_argument(
            "overrides", nargs="*", metavar="field=value", help="e.g. train.epochs=3"
        )


def open_project(parsed: argparse.Namespace) -> tuple[Project, Store]:
    """The project that the words name. Raises ProjectError, NotFoundError, StoreError."""
    from modelyard.flow import read
    from modelyard.spec.read import override

    project = read(
        parsed.project, dict(override(text) for text in getattr(parsed, "overrides", []))
    )
    return project, open_store(project.store_folder)


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value, enc_hook=_plain), indent=2).decode())


def _plain(value: Any) -> Any:
    return vars(value) if hasattr(value, "__dict__") else str(value)


def print_table(rows: Sequence[Mapping[str, object]], *, empty: str) -> None:
    """Rows as an aligned table; ``empty`` is said where there are none."""
    if not rows:
        print(empty)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    # Pipes and files get lines that are never broken to a screen's width, and no blanks at their ends.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().strip("\n").splitlines()))


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values, one a line, aligned."""
    rows = [(name, _cell(value)) for name, value in pairs]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def metrics_line(metrics: Mapping[str, float], prefix: str = "test/") -> str:
    """``accuracy 0.985, loss 0.06``: the few metrics of one split that fit in a line."""
    usual = ("accuracy", "f1", "rmse", "r2", "loss")
    chosen = [(name, metrics[prefix + name]) for name in usual if prefix + name in metrics]
    return ", ".join(f"{name} {value:.4g}" for name, value in chosen)
