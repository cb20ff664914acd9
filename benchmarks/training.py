"""Ours against hand-written loops, Lightning, Accelerate, Keras and Ray Train: samples a second of whole trainings.

Run with ``make bench-peers``, or ``python -m benchmarks.training [--work cnn,mlp,transformer]
[--workers 1,2] [--contenders NAME,NAME] [--steps N] [--rounds N] [--json]``. Each contender is one file in
``training_contenders/``, written as the documentation of its framework teaches it: the same model, batch,
precision and data on disk. Each turn is a process of its own (with two workers, as many as the
framework starts), has all cores as its framework divides them, and is timed after its warm-up. The
contenders take turns round by round; ratios are to the loop written by hand, in the same round.

The bars: ours at least as fast as the best loop written by hand, ahead of every framework, at most
50 µs a step over the bare step of the same kind; with two workers no worse than bare DDP.
"""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, Contender, Row, compare, options, peers_python, show
from benchmarks.training_contenders import TABLE, Entry
from benchmarks.training_work import WORKS, Work, make_data
from modelyard.engines.local import Local
from modelyard.spec.work import Job

OURS, BARE = "modelyard", "bare step of our kind"


def one_turn(name: str, work: Work, place: Path, workers: int, steps: int, warm_up: int) -> float:
    """Samples a second of one contender's training. Raises SystemExit with what it printed where it fails."""
    command = [peers_python(), *TABLE[name].arguments(workers), "--work", work.name]
    command += ["--place", str(place), "--steps", str(steps), "--warm-up", str(warm_up)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "RAY_TRAIN_V2_ENABLED": "1",
    }
    if TABLE[name].kept_memory:
        job = Job(name="turn", arguments=(), size=1, folder=tempfile.gettempdir())
        given = Local().plan(job)["processes"][0]["environment"]
        environment |= {key: value for key, value in given.items() if key.startswith("MALLOC_")}
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("TURN ")]
    if done.returncode or len(lines) != 1:
        raise SystemExit(
            f"{name}: exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    found: dict[str, Any] = json.loads(lines[0].removeprefix("TURN "))
    return float(found["rate"])


def chosen_contenders(asked: str, work: Work, workers: int) -> dict[str, Entry]:
    """Those that are installed and can have so many workers; with ``asked`` only those, by name."""
    names = [name.strip() for name in asked.split(",") if name.strip()] or list(TABLE)
    if unknown := [name for name in names if name not in TABLE]:
        raise SystemExit(f"no contender {unknown[0]!r}; there are: {', '.join(TABLE)}")
    fitting = {}
    for name in names:
        entry = TABLE[name]
        if workers <= entry.most and work.name not in entry.never:
            if entry.installed(peers_python()):
                fitting[name] = entry
            else:
                sys.stderr.write(f"left out: {name} ({entry.needs} is not installed)\n")
    return fitting


def verdict(rows: list[Row], work: Work) -> str:
    """Ours against the best of each group in words, by the medians of ratios within rounds."""
    by_name = {row.name: row for row in rows}
    ours = by_name.get(OURS)
    if ours is None:
        return ""
    said = []
    for group in ("by hand", "framework"):
        rivals = [row for row in rows if TABLE[row.name].group == group]
        if rivals:
            best = max(rivals, key=lambda row: row.ratio)
            said.append(f"{ours.ratio / best.ratio:.2f} of the best {group} ({best.name})")
    if bare := by_name.get(BARE):
        over = 1e6 * work.batch * (1 / ours.median - 1 / bare.median)
        said.append(f"{over:+.0f} µs a step over the bare step of the same kind")
    return f"ours: {'; '.join(said)}\n\n"


def main() -> None:
    parser = options(__doc__ or "", rounds=5)
    parser.add_argument("--work", default=",".join(WORKS), help="default: all three")
    parser.add_argument("--workers", default="1,2", help="default 1,2")
    parser.add_argument("--contenders", default="", help="names, with commas; default: all")
    parser.add_argument("--steps", type=int, default=200, help="timed, of each turn; default 200")
    parser.add_argument("--warm-up", type=int, default=30, help="steps before; default 30")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-training-") as folder:
        for work in (WORKS[name] for name in chosen.work.split(",")):
            place = make_data(Path(folder), work)
            for workers in map(int, chosen.workers.split(",")):
                entries = chosen_contenders(chosen.contenders, work, workers)
                steps = chosen.steps * work.pace
                contenders = [
                    Contender(
                        name, partial(one_turn, name, work, place, workers, steps, chosen.warm_up)
                    )
                    for name in entries
                ]
                rows = compare(contenders, chosen.rounds, warm_up=0)
                title = f"{work.title}, batch {work.batch}, {workers} worker{'s' * (workers > 1)}"
                show(title, "samples/s", rows, as_json=chosen.json)
                if not chosen.json:
                    sys.stdout.write(verdict(rows, work))
                sys.stdout.flush()


if __name__ == "__main__":
    main()
