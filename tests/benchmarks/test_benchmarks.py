"""The harness compares fairly, and each benchmark runs from its command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.harness import Contender, compare  # noqa: E402


def test_contenders_take_turns_and_ratios_are_of_the_same_round() -> None:
    """A machine that slows down tenfold in one round changes no ratio."""
    turns: list[str] = []
    slowness = [1.0, 1.0, 10.0, 1.0]

    def contender(name: str, seconds: float) -> Contender:
        def run() -> float:
            turns.append(name)
            return seconds * slowness[(len(turns) - 1) // 2]

        return Contender(name, run)

    rows = compare([contender("a", 2.0), contender("b", 3.0)], rounds=3)
    assert sorted(turns) == ["a"] * 4 + ["b"] * 4
    assert (rows[0].ratio, rows[1].ratio) == (1.0, 1.5)
    assert (rows[1].ratio_low, rows[1].ratio_high) == (1.5, 1.5)
    assert (rows[1].median, rows[1].low, rows[1].high) == (3.0, 3.0, 30.0)


@pytest.mark.parametrize(
    ("name", "arguments", "contender"),
    [("start_up", [], "yard --help"), ("training_loop", ["--steps", "2"], "modelyard")],
)
def test_a_benchmark_runs_from_its_command_line(
    name: str, arguments: list[str], contender: str
) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--rounds", "1", "--json", *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows[contender]["median"] > 0
