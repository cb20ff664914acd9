"""Saving beside the training: what is blocked, what is waited for, what goes wrong and when it is told."""

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from modelyard.backends.base import Part, Snapshot
from modelyard.spec.errors import StoreError, TrainingError
from modelyard.spec.work import World
from modelyard.training import checkpoints
from modelyard.training.checkpoints import BrokenWeights, Progress
from modelyard.training.saving import Writer

ROWS = 24


def world(rank: int = 0, size: int = 1, attempt: int = 0) -> World:
    return World(rank=rank, size=size, rendezvous="", attempt=attempt)


def state_of(step: int, rank: int = 0, size: int = 1) -> Snapshot:
    """A matrix of which each worker holds some rows, two vectors that all hold."""
    rows = np.arange(ROWS * 5, dtype=np.float32).reshape(ROWS, 5) + step
    low, high = ROWS * rank // size, ROWS * (rank + 1) // size
    return Snapshot(
        tensors={
            "model.rows": rows[low:high].copy(),
            "model.bias": np.full(7, step, np.float32),
            "optimizer.bias.exp_avg": np.full(7, step / 2, np.float64),
        },
        parts={"model.rows": Part(offset=(low, 0), shape=(ROWS, 5))} if size > 1 else {},
        numbers={"optimizer": "adamw"},
    )


def assert_whole(folder: Path, step: int) -> None:
    newest, skipped = checkpoints.latest(folder)
    assert newest is not None and newest.step == step and skipped == []
    loaded, progress = checkpoints.load(newest)
    assert progress.step == step and loaded.numbers == {"optimizer": "adamw"}
    assert loaded.tensors.keys() == state_of(step).tensors.keys()
    for name, array in state_of(step).tensors.items():
        np.testing.assert_array_equal(loaded.tensors[name], array)


def save_together(folder: Path, size: int, steps: list[int], keep: int = 2) -> None:
    """``size`` workers, each in a thread of its own, at their own pace."""

    def work(rank: int) -> None:
        with Writer(folder, world(rank, size), keep=keep) as writer:
            for step in steps:
                writer.save(state_of(step, rank, size), Progress(step=step), epoch=step / 10)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_the_training_may_go_on_at_once(tmp_path: Path) -> None:
    """What it does to its weights afterwards is not in the checkpoint."""
    state = state_of(3)
    with Writer(tmp_path, world(), keep=2) as writer:
        writer.save(state, Progress(step=3), epoch=0.3)
        for array in state.tensors.values():
            array.fill(-1)
    assert_whole(tmp_path, 3)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_workers_write_their_shares_and_anyone_reads_the_whole(tmp_path: Path, size: int) -> None:
    save_together(tmp_path, size, [10, 20, 30])
    assert_whole(tmp_path, 30)
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert found == ["best.json", "step-00000020", "step-00000030"]
    newest = checkpoints.found(checkpoints.folder_of(tmp_path, 30))
    on_disk = {path.name for path in Path(newest.folder).iterdir()} - {"manifest.json"}
    assert newest.files.keys() == on_disk and len([f for f in on_disk if "shard" in f]) == size


def test_another_world_goes_on_where_this_one_ended(tmp_path: Path) -> None:
    for attempt, size in enumerate((2, 1, 4, 3)):
        step = 10 * (attempt + 1)
        save_together(tmp_path, size, [step])
        assert_whole(tmp_path, step)


def test_the_memory_of_the_copy_is_used_again(tmp_path: Path) -> None:
    with Writer(tmp_path, world(), keep=2) as writer:
        writer.save(state_of(1), Progress(step=1), epoch=0.1)
        first = {name: id(array) for name, array in writer._buffers.items()}
        writer.save(state_of(2), Progress(step=2), epoch=0.2)
        assert {name: id(array) for name, array in writer._buffers.items()} == first
    assert_whole(tmp_path, 2)


def test_it_is_told_when_it_is_there(tmp_path: Path) -> None:
    told = []

    def saved(progress: Progress, seconds: float, blocked: float) -> None:
        assert_whole(tmp_path, progress.step)
        told.append((progress.step, 0 < blocked < seconds))

    with Writer(tmp_path, world(), keep=2, saved=saved) as writer:
        for step in (1, 2):
            writer.save(state_of(step), Progress(step=step), epoch=0.1)
    assert told == [(1, True), (2, True)]


def test_a_weight_that_is_no_number_is_told_at_the_next_meeting(tmp_path: Path) -> None:
    with (
        pytest.raises(TrainingError, match=r"after step 2, model\.bias .* not finite"),
        Writer(tmp_path, world(), keep=2) as writer,
    ):
        writer.save(state_of(1), Progress(step=1), epoch=0.1)
        broken = state_of(2)
        broken.tensors["model.bias"][3] = np.inf
        writer.save(broken, Progress(step=2), epoch=0.2)
        while True:
            writer.check()
            time.sleep(0.01)
    assert_whole(tmp_path, 1)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_what_was_refused_while_the_next_save_waits_is_told_at_the_meeting_after(
    tmp_path: Path,
) -> None:
    """Only at a meeting do all workers learn of it; a save is none."""
    with Writer(tmp_path, world(), keep=2) as writer:
        broken = state_of(1)
        broken.tensors["model.bias"][0] = np.nan
        writer.save(broken, Progress(step=1), epoch=0.1)
        writer.save(state_of(2), Progress(step=2), epoch=0.2)
        assert not writer.busy and checkpoints.latest(tmp_path) == (None, [])
        assert writer.refused() and not writer.refused()
        writer.save(state_of(3), Progress(step=3), epoch=0.3)
    assert_whole(tmp_path, 3)


def test_worker_0_does_not_wait_for_a_share_that_was_refused(tmp_path: Path) -> None:
    """Worker 1 holds the broken rows; both know within moments, and there is no checkpoint."""
    zero, one = (Writer(tmp_path, world(rank, 2), keep=2) for rank in (0, 1))
    broken = state_of(1, 1, 2)
    broken.tensors["model.rows"][0, 0] = np.inf
    began = time.monotonic()
    zero.save(state_of(1, 0, 2), Progress(step=1), epoch=0.1)
    one.save(broken, Progress(step=1), epoch=0.1)
    for writer in (zero, one):
        with pytest.raises(BrokenWeights):
            writer.wait()
    assert time.monotonic() - began < 20 and checkpoints.latest(tmp_path) == (None, [])
    checkpoints.sweep(tmp_path)
    zero.save(state_of(1, 0, 2), Progress(step=1), epoch=0.1)
    one.save(state_of(1, 1, 2), Progress(step=1), epoch=0.1)
    one.wait()
    zero.wait()
    assert_whole(tmp_path, 1)


def test_finite_weights_whose_sum_overflows_are_fine(tmp_path: Path) -> None:
    state = state_of(1)
    state.tensors["model.bias"].fill(3e38)
    with Writer(tmp_path, world(), keep=2) as writer:
        writer.save(state, Progress(step=1), epoch=0.1)
    newest, _ = checkpoints.latest(tmp_path)
    assert newest is not None


def test_one_save_is_in_flight_and_the_next_waits_for_it(tmp_path: Path) -> None:
    """Worker 0 is done with a checkpoint only when worker 1 has written its share."""
    zero = Writer(tmp_path, world(0, 2), keep=2)
    zero.save(state_of(1, 0, 2), Progress(step=1), epoch=0.1)
    second = threading.Thread(
        target=zero.save, args=(state_of(2, 0, 2), Progress(step=2)), kwargs={"epoch": 0.2}
    )
    second.start()
    time.sleep(0.1)
    assert second.is_alive() and checkpoints.latest(tmp_path) == (None, [])
    with Writer(tmp_path, world(1, 2), keep=2) as one:
        one.save(state_of(1, 1, 2), Progress(step=1), epoch=0.1)
        second.join(10)
        assert not second.is_alive()
        one.save(state_of(2, 1, 2), Progress(step=2), epoch=0.2)
    zero.wait()
    assert_whole(tmp_path, 2)


def test_a_share_that_never_comes_is_an_error_and_no_checkpoint(tmp_path: Path) -> None:
    save_together(tmp_path, 2, [10])
    writer = Writer(tmp_path, world(0, 2, attempt=1), keep=2, patience=0.1)
    writer.save(state_of(20, 0, 2), Progress(step=20), epoch=2)
    with pytest.raises(StoreError, match=r"step 20 is not complete: worker 1 did not write"):
        writer.wait()
    assert_whole(tmp_path, 10)
    checkpoints.sweep(tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_training_that_fails_waits_for_nobody(tmp_path: Path) -> None:
    began = time.monotonic()
    with (
        pytest.raises(TrainingError, match="lost"),
        Writer(tmp_path, world(0, 2), keep=2) as writer,
    ):
        writer.save(state_of(1, 0, 2), Progress(step=1), epoch=0.1)
        raise TrainingError("lost another worker")
    assert time.monotonic() - began < 3
    assert checkpoints.latest(tmp_path) == (None, [])


def test_shards_of_an_earlier_attempt_are_not_taken_for_new_ones(tmp_path: Path) -> None:
    """Worker 1 of attempt 0 wrote its share; worker 0 died. Attempt 1 comes to the same step."""
    with Writer(tmp_path, world(1, 2, attempt=0), keep=2) as stale:
        stale.save(state_of(999, 1, 2), Progress(step=10), epoch=1)
    writer = Writer(tmp_path, world(0, 2, attempt=1), keep=2, patience=0.1)
    writer.save(state_of(10, 0, 2), Progress(step=10), epoch=1)
    with pytest.raises(StoreError, match="worker 1"):
        writer.wait()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True
    )
    if made.returncode != 0:
        pytest.skip("no permission to mount a small disk")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_is_told_and_leaves_the_old_checkpoint(small_disk: Path) -> None:
    with (
        pytest.raises(StoreError, match="disk is full"),
        Writer(small_disk, world(), keep=2) as writer,
    ):
        writer.save(state_of(1), Progress(step=1), epoch=0.1)
        large = Snapshot(tensors={"model.w": np.ones(300_000, np.float32)}, numbers={})
        writer.save(large, Progress(step=2), epoch=0.2)
    assert_whole(small_disk, 1)
    assert not list((small_disk / "checkpoints").glob(".*"))


@pytest.mark.parametrize("file", ["model-1-of-2.safetensors", "shard-1.json", "shard-0.json"])
@pytest.mark.parametrize("how", ["flip", "remove"])
def test_one_damaged_shard_falls_back_to_the_checkpoint_before(
    tmp_path: Path, file: str, how: str
) -> None:
    save_together(tmp_path, 2, [10, 20])
    path = checkpoints.folder_of(tmp_path, 20) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink() if how == "remove" else path.write_bytes(content)
    newest, skipped = checkpoints.latest(tmp_path)
    assert newest is not None and newest.step == 10
    assert len(skipped) == 1 and "step-00000020" in skipped[0] and file in skipped[0]
    # The damaged one is replaced when the training comes to its step again.
    save_together(tmp_path, 2, [15, 20])
    assert_whole(tmp_path, 20)
