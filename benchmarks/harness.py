"""Fair comparisons: contenders take turns round by round, and ratios are taken within a round.

What slows the machine for a while then slows all of them, and drops out of the ratio. A contender is
a function that does the work once and returns its measure (seconds, or samples a second).
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Contender:
    """One way of doing the work."""

    name: str
    run: Callable[[], float]


@dataclass(frozen=True)
class Row:
    """What one contender reached; ratios are to the baseline in the same round."""

    name: str
    median: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float


def compare(contenders: list[Contender], rounds: int, *, warm_up: int = 1) -> list[Row]:
    """Rows in the order given; the first contender is the baseline. Rounds begin with another one each."""
    measures: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(-warm_up, rounds):
        start = number % len(contenders)
        for contender in contenders[start:] + contenders[:start]:
            measure = contender.run()
            if number >= 0:
                measures[contender.name].append(measure)
    base = measures[contenders[0].name]
    return [row_of(name, values, base) for name, values in measures.items()]


def row_of(name: str, values: list[float], base: list[float]) -> Row:
    """From the measures of a contender and of the baseline in the same rounds."""
    ratios = [value / other for value, other in zip(values, base, strict=True)]
    return Row(
        name=name,
        median=statistics.median(values),
        low=min(values),
        high=max(values),
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
    )


def peers_python() -> str:
    """The interpreter that has the peers, for every contender of a comparison.

    ``MODELYARD_BENCH_PYTHON``, else that of ``make bench-peers``, else this one, with what it happens to have.
    """
    made = ROOT / ".venv-bench" / "bin" / "python"
    return os.environ.get("MODELYARD_BENCH_PYTHON") or (
        str(made) if made.exists() else sys.executable
    )


def options(description: str, *, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default {rounds}")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    return parser


def show(title: str, unit: str, rows: list[Row], *, as_json: bool = False) -> None:
    """Print the table: median and range of the measure, median and range of the ratio."""
    if as_json:
        found = {"title": title, "unit": unit, "rows": [asdict(row) for row in rows]}
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    width = max(len(row.name) for row in rows)
    sys.stdout.write(f"{title}\n{'':{width}}  {unit + ' (min–max)':>28}  ratio (min–max)\n")
    for row in rows:
        measure = f"{row.median:.4g} ({row.low:.4g}–{row.high:.4g})"
        ratio = f"{row.ratio:.2f} ({row.ratio_low:.2f}–{row.ratio_high:.2f})"
        sys.stdout.write(f"{row.name:{width}}  {measure:>28}  {ratio}\n")
