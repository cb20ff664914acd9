"""The pieces of work that are killed at every operation: `crash_points.py` says how.

Run as ``python crash_scenarios.py SCENARIO [--power]``.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import msgspec
import numpy as np
from crash_points import Scenario, main, spare

from modelyard.backends.base import Part, Snapshot
from modelyard.data.dataset import prepare
from modelyard.spec.errors import StoreError, TrainingError
from modelyard.spec.read import read_project
from modelyard.spec.records import Dataset, Noticed, Run
from modelyard.spec.work import World
from modelyard.store import Store, open_store
from modelyard.store.events import EventLog, now, read_events
from modelyard.training import checkpoints
from modelyard.training.attempts import _next_attempt
from modelyard.training.checkpoints import Progress
from modelyard.training.saving import Writer
from modelyard.training.train import train

KEEP = 2


def state_of(step: int, rank: int = 0, size: int = 1) -> Snapshot:
    rows = np.arange(24, dtype=np.float32).reshape(8, 3) * step
    low, high = 8 * rank // size, 8 * (rank + 1) // size
    return Snapshot(
        tensors={
            "model.rows": rows[low:high],
            "model.bias": np.full(5, step, np.float32),
            "optimizer.bias.exp_avg": np.full(5, -step, np.float64),
        },
        parts={"model.rows": Part(offset=(low, 0), shape=(8, 3))} if size > 1 else {},
        numbers={"optimizer": "adamw"},
    )


def progress_of(step: int, best: int) -> Progress:
    return Progress(step=step, best_step=best, best_value=0.5, ranking=((best, 0.5),))


def save(folder: Path, step: int, best: int, rank: int = 0, size: int = 1) -> None:
    world = World(rank=rank, size=size, rendezvous="")
    with Writer(folder, world, keep=KEEP, patience=0.05) as writer:
        writer.save(state_of(step, rank, size), progress_of(step, best), epoch=step / 10)


def save_together(folder: Path, step: int, best: int, size: int = 2) -> None:
    """Two workers in this process, each with its own thread; what kills one ends both here."""
    errors: list[StoreError] = []

    def work(rank: int) -> None:
        world = World(rank=rank, size=size, rendezvous="")
        try:
            with Writer(folder, world, keep=KEEP, patience=20) as writer:
                writer.save(state_of(step, rank, size), progress_of(step, best), epoch=step / 10)
        except StoreError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))


def resume(folder: Path) -> int:
    """As worker 0 does at its start; returns the step that it goes on from, 0 for none."""
    checkpoints.sweep(folder)
    assert not list((folder / "checkpoints").glob(".*"))
    newest, _ = checkpoints.latest(folder)
    if newest is None:
        return 0
    loaded, progress = checkpoints.load(newest)
    whole = state_of(newest.step)
    assert progress.step == newest.step and loaded.numbers == whole.numbers
    assert loaded.tensors.keys() == whole.tensors.keys()
    for name, array in whole.tensors.items():
        np.testing.assert_array_equal(loaded.tensors[name], array)
    best = progress.best_step or newest.step
    checkpoints.verified(checkpoints.folder_of(folder, best))
    checkpoints.name_best(folder, progress)
    return newest.step


def goes_on(folder: Path, reached: int) -> None:
    """The next saves work, and the last state is as if nothing had happened."""
    for step in range(reached + 1, 7):
        save(folder, step, best=max(step - step % 2, 1))
    assert resume(folder) == 6
    best = checkpoints.best(folder)
    assert best is not None and best.step == 6
    assert steps(folder) == [5, 6]


# --- one worker ----------------------------------------------------------------------------------


def fourth_was_damaged(folder: Path) -> None:
    """It was there and worthless; the third counts until the fourth is written anew."""
    reached = resume(folder)
    assert reached in (3, 4)
    goes_on(folder, reached)


def three_saved(folder: Path) -> None:
    """The best one is the second, which is no longer among the last."""
    for step in (1, 2, 3):
        save(folder, step, best=min(step, 2))
    assert steps(folder) == [2, 3]


def fourth_is_best(folder: Path) -> None:
    save(folder, 4, best=4)


def third_or_fourth(folder: Path) -> None:
    before = steps(folder)
    reached = resume(folder)
    assert reached in (3, 4), before
    if 4 in before:
        assert reached == 4
    goes_on(folder, reached)


def nothing(folder: Path) -> None:
    """A run without a checkpoint."""


def none_or_first(folder: Path) -> None:
    reached = resume(folder)
    assert reached in (0, 1)
    goes_on(folder, reached)


def newest_is_damaged(folder: Path) -> None:
    three_saved(folder)
    save(folder, 4, best=2)
    file = checkpoints.folder_of(folder, 4) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    save_leftover(folder)


def save_leftover(folder: Path) -> None:
    building = checkpoints.building_folder(folder, 9, attempt=0)
    building.mkdir()
    (building / "shard-0.json").write_text("{")


def resume_and_replace(folder: Path) -> None:
    assert resume(folder) == 3
    save(folder, 4, best=4)


# --- two workers ---------------------------------------------------------------------------------


def fourth_by_two(folder: Path) -> None:
    save_together(folder, 4, best=4)


def one_of_two(rank: int) -> Callable[[Path], None]:
    """Worker ``rank`` is the one that dies; the other is a process of its own, which then gives up."""

    def act(folder: Path) -> None:
        dying, other = os.getpid(), os.fork()
        if other == 0:
            spare()
            with contextlib.suppress(TrainingError):
                share(folder, 1 - rank, dying)
            os._exit(0)
        share(folder, rank, os.getppid())
        assert os.waitpid(other, 0)[1] == 0

    return act


def share(folder: Path, rank: int, companion: int) -> None:
    world = World(rank=rank, size=2, rendezvous="")
    with Writer(folder, world, keep=KEEP) as writer:
        writer.save(state_of(4, rank, 2), progress_of(4, 4), epoch=0.4)
        while writer.busy:
            if os.getppid() != companion:
                raise TrainingError("lost another worker")  # as an exchange of gradients would say
            time.sleep(0.002)


# --- records, events, attempts ---------------------------------------------------------------------


def run_record(step: int) -> Run:
    return Run(
        id="digits-1",
        project="digits",
        state="running",
        created="2026-11-25T09:00:00+00:00",
        folder="/somewhere",
        dataset="d",
        step=step,
        error="x" * 20_000,
    )


def write_record(step: int) -> Callable[[Path], None]:
    return lambda folder: Store(folder).write(
        folder / "runs" / "digits-1" / "run.json", run_record(step)
    )


def record_is_old_or_new(folder: Path) -> None:
    path = folder / "runs" / "digits-1" / "run.json"
    assert Store(folder).read(path, Run) in (run_record(1), run_record(2))
    write_record(3)(folder)
    assert Store(folder).read(path, Run) == run_record(3)


def record_is_absent_or_new(folder: Path) -> None:
    path = folder / "runs" / "digits-1" / "run.json"
    assert Store(folder).read_or_none(path, Run) in (None, run_record(2))
    write_record(3)(folder)
    assert Store(folder).read(path, Run) == run_record(3)


def events(*numbers: int) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        log = EventLog(folder / "events.jsonl")
        for number in numbers:
            log.append(Noticed(time=now(), message=str(number)))
        log.close()

    return act


def events_are_a_beginning(folder: Path) -> None:
    def numbers() -> list[int]:
        found = read_events(folder / "events.jsonl")
        return [int(event.message) for event in found if isinstance(event, Noticed)]

    before = numbers()
    assert before == [1, 2, 3, 4, 5][: len(before)] and len(before) >= 2
    events(6)(folder)
    assert numbers() == [*before, 6]


def attempts(count: int) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        for _ in range(count):
            _next_attempt(folder)

    return act


def the_next_attempt_is_new(folder: Path) -> None:
    there = {path.name for path in (folder / "workers").glob("attempt-*")}
    assert f"attempt-{_next_attempt(folder)}" not in there


# --- a whole command ---------------------------------------------------------------------------------

PROJECT = """
[project]
name = "small"
[data]
source = "loader:load"
[model]
build = "model:build"
[train]
epochs = 1
batch_size = 16
device = "cpu"
"""
LOADER = """
import numpy as np

def load():
    numbers = np.random.default_rng(0).normal(size=(80, 4)).astype("float32")
    return numbers, [("no", "yes")[int(row.sum() > 0)] for row in numbers]
"""
MODEL = """
from torch import nn

def build(outputs):
    return nn.Linear(4, outputs)
"""


def trained_but_not_recorded(folder: Path) -> None:
    """The workers have left their result; the command was killed before it wrote the run down."""
    for name, text in (("yard.toml", PROJECT), ("loader.py", LOADER), ("model.py", MODEL)):
        (folder / name).write_text(text)
    project = read_project(folder / "yard.toml")
    sys.path.insert(0, str(folder))
    run = train(project, prepare(project, open_store(folder)), Store(folder))
    (Path(run.folder) / "run.json").unlink()


def train_again(folder: Path) -> None:
    """Only what the parent does: claim, record, order, attempts, events, record."""
    record = next((folder / "data").glob("*/dataset.json"))
    dataset = Dataset.from_json(record.read_bytes())
    dataset = msgspec.structs.replace(dataset, folder=str(record.parent))
    run = train(read_project(folder / "yard.toml"), dataset, Store(folder))
    assert run.state == "complete" and run.step == run.steps == 4 and run.best is not None
    checkpoints.verified(Path(run.best.folder))
    assert Store(folder).read(Path(run.folder) / "run.json", Run) == run


def the_command_ends_well(folder: Path) -> None:
    for path in folder.glob("runs/*/run.json"):
        assert Store(folder).read(path, Run).state in ("running", "complete")
    train_again(folder)


# --- a writer that is wrong, to see that all this would find it --------------------------------------


def careless(folder: Path) -> None:
    """Writes in place, the manifest first, and flushes nothing."""
    target = checkpoints.folder_of(folder, 4)
    target.mkdir()
    source = checkpoints.folder_of(folder, 3)
    for path in sorted(source.iterdir()):
        handle = os.open(target / path.name, os.O_WRONLY | os.O_CREAT)
        os.write(handle, path.read_bytes())
        os.close(handle)
    checkpoints.name_best(folder, msgspec.structs.replace(progress_of(4, 4)))


def any_published_is_whole(folder: Path) -> None:
    for step in steps(folder):
        checkpoints.verified(checkpoints.folder_of(folder, step))


SCENARIOS = {
    "checkpoint": Scenario(three_saved, fourth_is_best, third_or_fourth),
    "first-checkpoint": Scenario(nothing, lambda f: save(f, 1, 1), none_or_first),
    "replaced": Scenario(newest_is_damaged, resume_and_replace, fourth_was_damaged),
    "two-workers": Scenario(three_saved, fourth_by_two, third_or_fourth),
    "worker-0-of-2": Scenario(three_saved, one_of_two(0), third_or_fourth),
    "worker-1-of-2": Scenario(three_saved, one_of_two(1), third_or_fourth),
    "record": Scenario(write_record(1), write_record(2), record_is_old_or_new),
    "first-record": Scenario(nothing, write_record(2), record_is_absent_or_new),
    "events": Scenario(events(1, 2), events(3, 4, 5), events_are_a_beginning),
    "attempts": Scenario(attempts(2), attempts(2), the_next_attempt_is_new),
    "command": Scenario(trained_but_not_recorded, train_again, the_command_ends_well),
    "careless": Scenario(three_saved, careless, any_published_is_whole),
}

if __name__ == "__main__":
    main(SCENARIOS)
