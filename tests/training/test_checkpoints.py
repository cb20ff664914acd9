"""Checkpoints are whole or not there."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.backends.base import Snapshot
from modelyard.spec.errors import StoreError, TrainingError
from modelyard.training import checkpoints
from modelyard.training.checkpoints import Progress


def snapshot(value: float, size: int = 1000) -> Snapshot:
    weights = np.full((size,), value, dtype=np.float32)
    return Snapshot(
        tensors={"model.weight": weights, "optimizer.weight.exp_avg": weights * 2},
        numbers={"optimizer": "adamw"},
    )


def save(folder: Path, step: int, best: int | None = None, keep: int = 2) -> None:
    progress = Progress(step=step, best_step=best, best_value=0.5, metrics={"loss": step / 10})
    checkpoints.save(folder, snapshot(step), progress, epoch=step / 10, keep=keep)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 120, best=120)
    newest, skipped = checkpoints.latest(tmp_path)
    assert newest is not None and skipped == []
    assert Path(newest.folder).name == "step-00000120"
    assert newest.metrics == {"loss": 12.0} and newest.epoch == 12.0
    loaded, progress = checkpoints.load(newest)
    assert progress.step == 120 and progress.best_value == 0.5
    assert loaded.numbers == {"optimizer": "adamw"}
    for name, array in snapshot(120).tensors.items():
        np.testing.assert_array_equal(loaded.tensors[name], array)


def test_the_last_few_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, step, best=min(step, 3))
    assert steps(tmp_path) == [3, 6, 7]
    best = checkpoints.best(tmp_path)
    assert best is not None and best.step == 3


def test_without_an_evaluation_the_last_is_the_best(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    best = checkpoints.best(tmp_path)
    assert best is not None and best.step == 2


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "progress.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_one_is_skipped_and_named(tmp_path: Path, file: str, how: str) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = checkpoints.folder_of(tmp_path, 2) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "remove":
        path.unlink()
    else:
        path.write_bytes(bytes(content if how == "flip" else content[:-3]))
    newest, skipped = checkpoints.latest(tmp_path)
    assert newest is not None and newest.step == 1
    assert len(skipped) == 1 and "step-00000002" in skipped[0]
    with pytest.raises(StoreError, match="step-00000002"):
        checkpoints.verified(path.parent)


def test_a_moved_store_still_finds_its_checkpoints(tmp_path: Path) -> None:
    save(tmp_path / "old", 1)
    (tmp_path / "old").rename(tmp_path / "new")
    best = checkpoints.best(tmp_path / "new")
    assert best is not None and Path(best.folder).is_relative_to(tmp_path / "new")


def test_weights_that_are_no_numbers_are_never_published(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"model\.weight"):
        checkpoints.save(tmp_path, snapshot(np.nan), Progress(step=5), epoch=1, keep=2)
    assert checkpoints.latest(tmp_path) == (None, [])


def test_the_best_few_are_kept_beside_the_last(tmp_path: Path) -> None:
    """Also where a clock asked for checkpoints in between, which were not evaluated."""
    values = {2: 0.5, 4: 0.3, 6: 0.4, 8: 0.2, 10: 0.6, 12: 0.7}
    progress = Progress()
    for step in range(1, 14):
        progress = msgspec.structs.replace(progress, step=step)
        if step in values:
            progress = checkpoints.ranked(progress, values[step], keep=3, higher_is_better=False)
        checkpoints.save(tmp_path, snapshot(step), progress, epoch=step / 10, keep=2)
    assert progress.ranking == ((8, 0.2), (4, 0.3), (6, 0.4))
    assert (progress.best_step, progress.best_value) == (8, 0.2)
    assert steps(tmp_path) == [4, 6, 8, 12, 13]
    best = checkpoints.best(tmp_path)
    assert best is not None and best.step == 8


@given(
    values=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.5, np.nan]), max_size=12),
    keep=st.integers(1, 4),
    higher=st.booleans(),
)
def test_the_ranking_is_that_of_all_values_and_the_older_of_equals_is_better(
    values: list[float], keep: int, higher: bool
) -> None:
    progress = Progress()
    for step, value in enumerate(values, 1):
        progress = msgspec.structs.replace(progress, step=step)
        progress = checkpoints.ranked(progress, value, keep=keep, higher_is_better=higher)
    numbered = [(step, value) for step, value in enumerate(values, 1) if value == value]
    numbered.sort(key=lambda entry: (-entry[1] if higher else entry[1], entry[0]))
    assert progress.ranking == tuple(numbered[:keep])
    assert progress.best_step == (numbered[0][0] if numbered else None)


FORMAT_1 = Path(__file__).parent / "written_by_format_1"


def test_checkpoints_of_the_first_format_are_still_read(tmp_path: Path) -> None:
    """The folder was written by the code of version 0.1, before there were shards."""
    shutil.copytree(FORMAT_1, tmp_path, dirs_exist_ok=True)
    newest, skipped = checkpoints.latest(tmp_path)
    assert newest is not None and newest.step == 12 and skipped == [] and newest.format == 1
    loaded, progress = checkpoints.load(newest)
    weights = np.arange(24, dtype=np.float32).reshape(4, 6) * 12
    assert {name: (str(a.dtype), a.shape) for name, a in loaded.tensors.items()} == {
        "model.line.weight": ("float32", (4, 6)),
        "model.count": ("int64", ()),
        "optimizer.line.weight.exp_avg": ("float64", (4, 6)),
        "optimizer.line.weight.step": ("float32", ()),
    }
    np.testing.assert_array_equal(loaded.tensors["model.line.weight"], weights)
    assert loaded.numbers == {"optimizer": "adamw"}
    best = checkpoints.best(tmp_path)
    assert best is not None and best.step == 6
    assert checkpoints.ranking_of(progress) == ((6, 0.25),)
    # What comes next is of the new format; the old best one stays.
    progress = msgspec.structs.replace(progress, step=18)
    progress = checkpoints.ranked(progress, 0.3, keep=1, higher_is_better=False)
    checkpoints.save(tmp_path, snapshot(18), progress, epoch=3, keep=1)
    assert steps(tmp_path) == [6, 18]
    best = checkpoints.best(tmp_path)
    assert best is not None and best.step == 6


def test_a_damaged_one_of_the_first_format_is_skipped(tmp_path: Path) -> None:
    shutil.copytree(FORMAT_1, tmp_path, dirs_exist_ok=True)
    (checkpoints.folder_of(tmp_path, 12) / "optimizer.safetensors").unlink()
    newest, skipped = checkpoints.latest(tmp_path)
    assert newest is not None and newest.step == 6 and len(skipped) == 1


def test_a_newer_format_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    manifest = checkpoints.folder_of(tmp_path, 2) / "manifest.json"
    content = json.loads(manifest.read_bytes())
    assert content["format"] == checkpoints.FORMAT
    manifest.write_text(json.dumps({**content, "format": checkpoints.FORMAT + 1}))
    for read in (checkpoints.latest, lambda _: checkpoints.verified(manifest.parent)):
        with pytest.raises(StoreError, match=r"format 3, this version .* reads up to 2") as caught:
            read(tmp_path)
        assert "upgrade" in caught.value.mend


def test_no_permission_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(StoreError):
        save(tmp_path, 1)


WRITERS = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_checkpoints import save
folder = Path(sys.argv[1])
for line in sys.stdin:
    step, pid = int(line), os.fork()
    if pid == 0:
        os.write(1, b"%d\\n" % os.getpid())
        while True:
            step += 1
            save(folder, step, best=max(step - step % 3, 1))
            os.write(1, b"saved\\n")
    os.waitpid(pid, 0)
    os.write(1, b"gone\\n")
"""


def test_a_writer_killed_at_any_instant_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    """Kill a process that saves without pause, again and again, and read like a resuming run does.

    Each is killed after some saves and a part of the next: by the time that a save takes here and
    now, so that the kills fall everywhere, however busy the machine is.
    """
    rng, reached = random.Random(5), 0
    arguments = [str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(
        [sys.executable, "-c", WRITERS, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writers:
        assert writers.stdin is not None and writers.stdout is not None
        for _ in range(24):
            print(reached, file=writers.stdin, flush=True)
            pid, saves = int(writers.stdout.readline()), rng.randrange(1, 4)
            began = time.monotonic()
            for _ in range(saves):
                assert writers.stdout.readline() == "saved\n"
            each = (time.monotonic() - began) / saves
            time.sleep(rng.uniform(0.0, 1.5) * each)
            os.kill(pid, signal.SIGKILL)
            while writers.stdout.readline() != "gone\n":
                pass
            for folder in (tmp_path / "checkpoints").glob("step-*"):
                loaded, progress = checkpoints.load(checkpoints.verified(folder))
                assert loaded.tensors["model.weight"][0] == progress.step
            newest, skipped = checkpoints.latest(tmp_path)
            assert newest is not None and skipped == []
            assert newest.step >= reached + saves  # what was said to be saved is there
            checkpoints.sweep(tmp_path)
            reached = newest.step
        writers.stdin.close()
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_the_newest_step_is_known_without_reading_the_state(tmp_path: Path) -> None:
    assert checkpoints.newest_step(tmp_path) == 0
    save(tmp_path, 3)
    save(tmp_path, 12)
    (checkpoints.folder_of(tmp_path, 12) / "model.safetensors").unlink()
    (tmp_path / "checkpoints" / "step-00000020").mkdir()
    assert checkpoints.newest_step(tmp_path) == 12
