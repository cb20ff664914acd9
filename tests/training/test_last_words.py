"""A failing worker's last words, also where a full disk takes them: two real workers on a small disk that fills."""

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelyard.spec.errors import DiskFull, ModelError, PeerLost, StoreError
from modelyard.spec.records import Run
from modelyard.spec.work import World
from modelyard.training import checkpoints, last_words
from modelyard.training.last_words import leave_word, words_left
from modelyard.training.order import attempt_folder
from modelyard.training.recovery import DISK_FULL_EXIT
from modelyard.training.train import train

Place = Any
"""conftest.Place: a project folder, its store, and commands run on it."""
SECOND = World(rank=1, size=2, rendezvous="", attempt=0)
LOADER = """
import numpy as np

def load():
    random = np.random.default_rng(0)
    classes = random.integers(0, 4, 400)
    pictures = random.normal(size=(400, 1, 8, 8)) + classes[:, None, None, None]
    return pictures.astype("float32"), [str(name) for name in classes]
"""
HOARDER = """
import os
from torch import nn

held = []

def fill():
    # Without a name: the room comes back when this worker ends, before its parent looks.
    held.append(os.open({disk!r}, os.O_TMPFILE | os.O_RDWR))
    try:
        while True:
            os.write(held[0], bytes(2**16))
    except OSError:
        pass

class Hoarder(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, outputs))

    def forward(self, x):
        if self.training and not held and os.environ.get("RANK") == "0":
            fill()
        return self.layers(x)

def build(outputs):
    return Hoarder(outputs)
"""


@pytest.fixture
def small_disk(place: Place) -> Iterator[Path]:
    """The store of ``place``: a file system of 3 MiB, under a project whose loader needs no other package."""
    (place.root / "loader.py").write_text(LOADER)
    disk = place.store.root
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True
    )
    if made.returncode != 0:
        pytest.skip("no permission to mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def yard_train(place: Place, *more: str) -> subprocess.CompletedProcess[str]:
    """``yard train`` with two workers, a checkpoint of 1.7 MB after each of three epochs."""
    words = ["train", "train.workers=2", "train.epochs=3", "model.args={ width = 2000 }", *more]
    return subprocess.run(
        [sys.executable, "-m", "modelyard.cli", *words],
        cwd=place.root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def weights_of(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The digests of a finished run's best weights."""
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["state"] == "complete" and found["step"] == 14
    return {n: d for n, d in found["best"]["files"].items() if n.startswith("model-")}


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_one_clear_error_and_more_room_goes_on(
    place: Place, small_disk: Path
) -> None:
    """The first checkpoint fits, the second does not; then there is room, and the end is the same to the bit."""
    refused = yard_train(place)
    assert refused.returncode == 1, refused.stdout
    assert "Traceback" not in refused.stderr and refused.stderr.count("error: ") == 1
    error = refused.stderr[refused.stderr.index("error: ") :]
    assert error.startswith(f"error: the disk is full: {small_disk}/runs/")
    assert f"of 3.1 MB are free on the file system at {small_disk}" in error
    assert "part of the checkpoint takes" in error
    assert "free some space there and run the command again; it goes on from step 5 of 14" in error
    (folder,) = (small_disk / "runs").iterdir()
    newest, skipped = checkpoints.latest(folder)
    assert newest is not None and newest.step == 5 and not skipped
    assert not list((folder / "checkpoints").glob(".*")), "what was half written is gone"
    run = Run.from_json((folder / "run.json").read_bytes())
    assert run.state == "failed" and "the disk is full" in run.error
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    resumed = yard_train(place, "--json")
    assert "step 5" in resumed.stderr
    assert weights_of(resumed) == weights_of(yard_train(place, "store.url=roomy", "--json"))


def test_a_worker_without_room_for_its_reason_is_not_blamed_on_the_other(
    place: Place, small_disk: Path
) -> None:
    """Worker 0 finds not a byte left, for its state, its log or its reason; worker 1 only sees it go."""
    (place.root / "model.py").write_text(HOARDER.format(disk=str(small_disk)))
    project = place.project(workers=2, epochs=2)
    with pytest.raises(DiskFull, match=r"^the disk is full: .* could not be written; ") as caught:
        train(project, place.dataset(project), place.store)
    assert f"are free on the file system at {small_disk}" in caught.value.what
    assert "goes on from step 0" in caught.value.mend
    (folder,) = (small_disk / "runs").iterdir()
    run = Run.from_json((folder / "run.json").read_bytes())
    assert run.state == "failed" and run.error == caught.value.what


class Full(io.StringIO):
    """A log on a full disk."""

    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, DISK_FULL_EXIT), (errno.EDQUOT, DISK_FULL_EXIT), (errno.EIO, 1)]
)  # fmt: skip
def test_the_exit_code_says_what_no_file_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def refuse(_path: Path, _content: bytes) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(last_words, "write_atomic", refuse)
    monkeypatch.setattr(sys, "stderr", Full())
    assert leave_word(tmp_path, SECOND, ModelError("the model raised")) == code
    assert words_left(tmp_path, 0) == []


@pytest.mark.parametrize(
    ("error", "kind", "what"),
    [
        (OSError(errno.ENOSPC, "full", "/s/x"), "DiskFull", "the disk is full: /s/x could not"),
        (RuntimeError("write: No space left on device"), "DiskFull", "the disk is full: Runtime"),
        (PeerLost("worker 1 of 2 lost another"), "PeerLost", "worker 1 of 2 lost another"),
        (OSError(errno.EACCES, "no", "/s/x"), "StoreError", "no permission to use /s/x"),
        (IndexError("list"), "IndexError", "IndexError: list"),
    ],
)
def test_a_worker_leaves_its_reason_in_words(
    tmp_path: Path, error: Exception, kind: str, what: str
) -> None:
    attempt_folder(tmp_path, 0).mkdir(parents=True)
    assert leave_word(tmp_path, SECOND, error) == 1
    (failure,) = words_left(tmp_path, 0)
    assert (failure.rank, failure.type) == (1, kind)
    assert failure.what.startswith(what)
    assert failure.known == (kind != "IndexError")


def test_a_full_disk_behind_another_error_is_told_in_its_place(tmp_path: Path) -> None:
    """A wrapper may have taken it for something else, a lost connection say."""
    attempt_folder(tmp_path, 0).mkdir(parents=True)
    outer = StoreError("worker 1 could not meet the others")
    outer.__cause__ = OSError(errno.ENOSPC, "full", str(tmp_path / "rendezvous-0"))
    leave_word(tmp_path, SECOND, outer)
    (failure,) = words_left(tmp_path, 0)
    assert failure.type == "DiskFull" and "rendezvous-0 could not be written" in failure.what
