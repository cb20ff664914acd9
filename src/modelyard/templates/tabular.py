"""What the table templates share: a table as ``data.csv``, and one row of it to try a prediction with."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

Value = str | int | float | bool


def write_table(folder: Path, columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> None:
    """Write ``data.csv`` (header first) and ``sample.json``: the first row without its last column, the target."""
    table = list(rows)
    with (folder / "data.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(table)
    sample = dict(zip(columns[:-1], table[0][:-1], strict=True))
    (folder / "sample.json").write_text(json.dumps(sample, indent=2) + "\n", encoding="utf-8")
