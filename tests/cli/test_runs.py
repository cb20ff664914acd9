"""``yard runs``: list, show, compare; on records made by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from modelyard.spec.records import Run, StepDone
from modelyard.store import open_store
from modelyard.store.events import EventLog


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "data.csv").write_text("a,label\n1,x\n2,y\n")
    (tmp_path / "yard.toml").write_text(
        '[project]\nname = "small"\n[data]\nsource = "csv"\npath = "data.csv"\n'
        '[model]\nbuild = "mlp"\n'
    )
    store = open_store(tmp_path / ".yard")
    for name, rate, loss in (("small-aa11", "0.1", 0.5), ("small-bb22", "0.2", 0.25)):
        folder = store.run_folder(name)
        record = Run(
            id=name, project="small", state="complete", created="2026-01-01T00:00:00+00:00",
            folder=str(folder), dataset="none", inputs={"train.optimizer.lr": rate},
            metrics={"test/loss": loss}, step=5, steps=5,
        )  # fmt: skip
        store.write(folder / "run.json", record)
        log = EventLog(folder / "events.jsonl")
        for step in (1, 2):
            log.append(
                StepDone(
                    time=step, step=step, epoch=step, loss=loss, learning_rate=0.1,
                    samples_per_second=1, eta_seconds=0,
                )
            )  # fmt: skip
        log.close()
    return tmp_path


def yard(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modelyard.cli", *words],
        cwd=folder, capture_output=True, text=True, timeout=120, env=dict(os.environ),
    )  # fmt: skip


def test_two_runs_are_compared_by_the_beginnings_of_their_ids(project: Path) -> None:
    done = yard(project, "runs", "compare", "small-a", "small-b", "--plot", "curves.png")
    assert done.returncode == 0, done.stderr
    assert "input: train.optimizer.lr" in done.stdout
    assert "0.25 *" in done.stdout  # of losses the smaller is better
    assert (project / "curves.png").stat().st_size > 1000
    body = json.loads(yard(project, "runs", "compare", "small-a", "small-b", "--json").stdout)
    assert body["runs"] == ["small-aa11", "small-bb22"]
    assert {"kind": "input", "name": "train.optimizer.lr", "values": ["0.1", "0.2"], "best": None} in body["rows"]  # fmt: skip


def test_losses_of_different_kinds_have_no_best(project: Path) -> None:
    store = open_store(project / ".yard")
    path = store.run_folder("small-bb22") / "run.json"
    run = store.read(path, Run)
    inputs = {**run.inputs, "task.label_smoothing": "0.1", "task.metrics": '["mine:hits"]'}
    store.write(path, replace(run, inputs=inputs))
    done = yard(project, "runs", "compare", "small-a", "small-b", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["test/loss"]["values"] == [0.5, 0.25] and rows["test/loss"]["best"] is None


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("runs", "compare", "small-a"), 2, "two runs"),
        (("runs", "compare", "small-a", "small-bb23"), 1, "did you mean 'small-bb22'?"),
        (("runs", "small-a", "small-b"), 2, "yard runs compare small-a small-b"),
        (("runs", "small-a", "--plot", "x.png"), 2, "yard runs compare A B"),
        (("runs", "compare", "small-a", "small-b", "--plot", "x.gif"), 2, ".png"),
    ],
)
def test_mistakes_are_one_clear_error(
    project: Path, words: tuple[str, ...], code: int, told: str
) -> None:
    done = yard(project, *words)
    assert done.returncode == code and told in done.stderr
    assert "Traceback" not in done.stderr


def test_list_and_show_are_as_before(project: Path) -> None:
    assert "small-aa11" in yard(project, "runs").stdout
    assert "0.25" in yard(project, "runs", "small-bb").stdout
