"""The turns of ``benchmarks.training``: each a process, its measure kept in a file of lines as soon as it is there."""

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, peers_python
from benchmarks.training_contenders import TABLE, Entry
from benchmarks.training_work import Work, make_data
from modelyard.engines.local import Local
from modelyard.spec.work import Job

PARTS_ROUND = -1
"""The number of the round that is not timed: it says where the time of a step goes."""


@dataclass(frozen=True)
class Case:
    """What all contenders of one table do."""

    work: Work
    workers: int
    steps: int
    warm_up: int

    @property
    def title(self) -> str:
        several = "s" * (self.workers > 1)
        return f"{self.work.title}, batch {self.work.batch}, {self.workers} worker{several}"

    @property
    def key(self) -> str:
        return f"{self.work.name}, {self.workers} workers, {self.steps} steps"


class Turns:
    """What was measured, by case, contender and round; with a file, also in earlier calls."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._found: dict[tuple[str, str, int], dict[str, Any]] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                said = json.loads(line)
                self._found[said["case"], said["contender"], said["round"]] = said

    def missing(self, case: Case, names: list[str], number: int) -> list[str]:
        """Who has not had this round; each round begins with another one."""
        start = number % max(1, len(names))
        order = names[start:] + names[:start]
        return [name for name in order if (case.key, name, number) not in self._found]

    def measures(self, case: Case, name: str) -> dict[int, float]:
        """Samples a second, by round."""
        return {
            number: float(found["rate"])
            for (key, who, number), found in self._found.items()
            if (key, who) == (case.key, name) and number >= 0
        }

    def parts(self, case: Case, name: str) -> dict[str, float] | None:
        """Microseconds a step of each part, where they were looked for."""
        found = self._found.get((case.key, name, PARTS_ROUND))
        return None if found is None else found["parts"]

    def take(self, case: Case, name: str, number: int, place: Path) -> None:
        began = time.time()
        found = one_turn(name, case, place, parts=number == PARTS_ROUND)
        kept = {"case": case.key, "contender": name, "round": number, **found}
        self._found[case.key, name, number] = kept
        if self._path is not None:
            kept |= {"at": round(began), "seconds": round(time.time() - began, 1)}
            with self._path.open("a") as file:
                file.write(json.dumps(kept) + "\n")

    def take_parts(self, case: Case, names: list[str], place: Path) -> None:
        """Once for each of them, in runs of their own with timers."""
        for name in names:
            if self.parts(case, name) is None:
                self.take(case, name, PARTS_ROUND, make_data(place, case.work))


def environment_of(entry: Entry) -> dict[str, str]:
    """What the turns of one contender see, and so also whoever asks whether it can run."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "RAY_TRAIN_V2_ENABLED": "1",
    }
    if entry.kept_memory:
        job = Job(name="turn", arguments=(), size=1, folder=tempfile.gettempdir())
        given = Local().plan(job)["processes"][0]["environment"]
        environment |= {key: value for key, value in given.items() if key.startswith("MALLOC_")}
    return environment


def one_turn(name: str, case: Case, place: Path, *, parts: bool = False) -> dict[str, Any]:
    """One contender's training. Raises SystemExit with what it printed where it fails."""
    entry = TABLE[name]
    steps = max(1, round(case.steps * entry.share))
    command = [
        peers_python(),
        *entry.arguments(case.workers, parts=parts),
        "--work",
        case.work.name,
    ]
    command += ["--place", str(place), "--steps", str(steps), "--warm-up", str(case.warm_up)]
    done = subprocess.run(
        command,
        env=environment_of(entry),
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
    return found
