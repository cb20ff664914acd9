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
    [
        ("start_up", [], "yard --help"),
        ("training_loop", ["--steps", "2"], "modelyard"),
        ("feed", ["--steps", "2"], "ahead"),
    ],
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


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_trainings_are_compared_with_what_is_installed(workers: int) -> None:
    command = [sys.executable, "-m", "benchmarks.training", "--work", "mlp", "--rounds", "1"]
    command += ["--steps", "60", "--warm-up", "2", "--workers", str(workers)]
    command += ["--contenders", "by hand,bare step of our kind,Lightning,modelyard"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MODELYARD_BENCH_PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stderr
    for name in ("by hand", "bare step of our kind", "Lightning", "modelyard"):
        assert f"\n{name} " in done.stdout
    assert "ours: " in done.stdout and "of the best framework (Lightning)" in done.stdout


def test_a_contender_that_does_not_exist_is_named() -> None:
    command = [sys.executable, "-m", "benchmarks.training", "--contenders", "keras"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "no contender 'keras'" in done.stderr


@pytest.mark.slow
def test_reading_is_compared_with_what_is_installed() -> None:
    command = [sys.executable, "-m", "benchmarks.data", "--rounds", "1"]
    command += ["--samples", "1024", "--files", "64"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MODELYARD_BENCH_PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stderr
    for name in ("memory copy", "modelyard in order", "modelyard shuffled", "modelyard PNG"):
        assert f"\n{name} " in done.stdout


@pytest.mark.slow
def test_trainings_are_compared_in_pieces_and_the_time_of_a_step_is_explained(
    tmp_path: Path,
) -> None:
    """A call that was to stop early is gone on with; no turn is taken twice."""
    results, names = (
        tmp_path / "turns.jsonl",
        ["by hand tuned", "bare step of our kind", "modelyard"],
    )
    command = [sys.executable, "-m", "benchmarks.training", "--work", "mlp", "--workers", "1"]
    command += ["--contenders", ",".join(names), "--steps", "200", "--results", str(results)]
    told = {**os.environ, "OMP_NUM_THREADS": "1", "MODELYARD_BENCH_PYTHON": sys.executable}

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], cwd=ROOT, capture_output=True, text=True, check=False, env=told
        )

    first = call("--rounds", "1", "--for", "0")
    assert (first.returncode, "to go on: MLP" in first.stderr) == (75, True), first.stderr
    second = call("--rounds", "1")
    assert second.returncode == 0, second.stderr
    taken = [json.loads(line) for line in results.read_text().splitlines()]
    assert [turn["contender"] for turn in taken] == [*names, "modelyard", "bare step of our kind"]
    assert [turn["round"] for turn in taken] == [0, 0, 0, -1, -1]
    parts = taken[3]["parts"]
    assert min(parts[part] for part in ("data", "forward", "backward", "optimizer")) > 0
    assert "the largest remaining cost: " in second.stdout
    again = call("--rounds", "1")
    assert again.stdout == second.stdout
    assert len(results.read_text().splitlines()) == len(taken)
