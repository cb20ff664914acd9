"""From SIGKILL of a worker to the next optimizer step, phase by phase, on two local workers.

Run with ``python -m benchmarks.recovery [--rounds N] [--plain] [--json]``. One training of a small CNN
is hit again and again (``--rounds`` times; each worker in turn) after it has made progress. ``--plain``
starts each worker as a Python of its own instead of forking it from a forerunner. The bar: a median of
at most 2 s in all. The phases: ``notice`` until the parent knows; ``end`` until the others are gone and it
is decided to restart; ``start`` until the new process exists; ``import`` until the worker's own code
begins; ``join`` until it has met the others; ``restore`` until model and state are there; ``step`` until
the first step is reported.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modelyard.engines.forerunner import SWITCH
from modelyard.flow import train
from modelyard.spec.records import (
    AnyEvent,
    Restarted,
    RunStarted,
    StepDone,
    WorkerJoined,
    WorkerLost,
)

PHASES = ("notice", "end", "start", "import", "join", "restore", "step")
PROJECT = """
[project]
name = "hit"
[data]
source = "pictures:load"
[model]
build = "cnn-small"
[train]
epochs = 100000
batch_size = 32
workers = 2
device = "cpu"
evaluate_every = 100000
checkpoint_seconds = 0.5
"""
PICTURES = """
import numpy as np

def load():
    draw = np.random.default_rng(0)
    return draw.random((2000, 3, 32, 32), dtype="float32"), [str(n) for n in draw.integers(0, 10, 2000)]
"""
STEPS_BETWEEN = 10


class Hits:
    """Kills workers while the training runs, and notes when what happened."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._events: list[AnyEvent] = []
        self._killed: list[float] = []
        self._made: dict[int, float] = {}

    def see(self, event: AnyEvent) -> None:
        self._events.append(event)
        if isinstance(event, WorkerJoined):
            self._made[event.pid] = made_at(event.pid)

    def work(self) -> None:
        """In a thread of its own; at the end the whole training is asked to stop."""
        draw = np.random.default_rng(0)
        for attempt in itertools.count():
            while len(self._steps(attempt)) < STEPS_BETWEEN:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.3))
            if attempt == self._count:
                os.kill(os.getpid(), signal.SIGINT)
                return
            pid = next(w.pid for w in self._joined(attempt) if w.rank == attempt % 2)
            self._killed.append(time.time())
            os.kill(pid, signal.SIGKILL)

    def phases(self) -> list[dict[str, float]]:
        """Seconds of each phase, for each hit."""
        return [self._phases(number) for number in range(self._count)]

    def _phases(self, number: int) -> dict[str, float]:
        joined = self._joined(number + 1)
        lost = [e.time for e in self._events if isinstance(e, WorkerLost) and e.attempt == number]
        again = [
            e.time for e in self._events if isinstance(e, Restarted) and e.attempt == number + 1
        ]
        started = [
            e.time for e in self._events if isinstance(e, RunStarted) and e.attempt == number + 1
        ]
        times = [
            self._killed[number],
            lost[0],
            again[0],
            max(self._made[worker.pid] for worker in joined),
            max(worker.time - worker.start_seconds for worker in joined),
            max(worker.time for worker in joined),
            started[0],
            self._steps(number + 1)[0].time,
        ]
        return {
            name: max(0.0, after - before)
            for name, before, after in zip(PHASES, times, times[1:], strict=False)
        } | {"all": times[-1] - times[0]}

    def _joined(self, attempt: int) -> list[WorkerJoined]:
        return [e for e in self._events if isinstance(e, WorkerJoined) and e.attempt == attempt]

    def _steps(self, attempt: int) -> list[StepDone]:
        return [e for e in self._events if isinstance(e, StepDone) and e.attempt == attempt]


def made_at(pid: int) -> float:
    """When the process was made, in seconds since 1970; the kernel counts hundredths."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def measure(rounds: int) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "yard.toml").write_text(PROJECT)
        (Path(folder) / "pictures.py").write_text(PICTURES)
        hits = Hits(rounds)
        thread = threading.Thread(target=hits.work, daemon=True)
        thread.start()
        try:
            train(folder, observers=[hits.see])
        except Exception as error:
            sys.stderr.write(f"{error}\n")
        thread.join(10)
        return hits.phases()


def show(rows: Sequence[dict[str, float]], as_json: bool) -> None:
    names = (*PHASES, "all")
    medians = {name: statistics.median(row[name] for row in rows) for name in names}
    if as_json:
        sys.stdout.write(
            json.dumps({"unit": "s", "medians": medians, "rows": list(rows)}, indent=1) + "\n"
        )
        return
    total = sum(medians[name] for name in PHASES)
    sys.stdout.write(f"from SIGKILL to the next step, {len(rows)} hits, seconds\n")
    for name in names:
        values = [row[name] for row in rows]
        share = "" if name == "all" else f"  {100 * medians[name] / total:3.0f} %"
        sys.stdout.write(
            f"{name:8} {medians[name]:6.3f} ({min(values):.3f}–{max(values):.3f}){share}\n"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12, help="default 12")
    parser.add_argument("--plain", action="store_true", help="without a forerunner")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    if chosen.plain:
        os.environ[SWITCH] = "1"
    show(measure(chosen.rounds), chosen.json)


if __name__ == "__main__":
    main()
