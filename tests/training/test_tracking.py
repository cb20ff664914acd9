"""MLflow as a sink: its own server and stores take a run, and a dead one harms nothing."""

import contextlib
import json
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelyard.spec.project import TrackSection
from modelyard.spec.records import (
    AnyEvent,
    Evaluated,
    Noticed,
    Run,
    RunFinished,
    RunStarted,
    StepDone,
)
from modelyard.store.events import EventLog, read_events
from modelyard.training.tracking import address_of, read_state, send_rest, without_password
from modelyard.training.train import train

Place = Any
"""conftest.Place: a project folder, its store, and commands run on it."""

SERVER = """
import os, sys
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{sys.argv[1]}/server.db"
os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = f"{sys.argv[1]}/artifacts"
from mlflow.server import app
app.run(port=int(sys.argv[2]))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(folder: Path, port: int) -> Iterator[str]:
    """MLflow's own server, on a database in ``folder``."""
    folder.mkdir(exist_ok=True)
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(folder), str(port)], stdout=log, stderr=log
        )
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def runs_at(address: str, project: str) -> list[Any]:
    def ask(path: str, body: dict[str, Any] | None) -> Any:
        request = urllib.request.Request(
            f"{address}/api/2.0/mlflow/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    name = f"experiments/get-by-name?experiment_name={project}"
    experiment = ask(name, None)["experiment"]["experiment_id"]
    found: list[Any] = ask("runs/search", {"experiment_ids": [experiment]}).get("runs", [])
    return found


def values(run: Any, kind: str) -> dict[str, Any]:
    return {item["key"]: item["value"] for item in run["data"].get(kind, [])}


def test_passwords_stay_in_the_address() -> None:
    assert without_password("https://me:word@host:5000/a") == "https://host:5000/a"
    for plain in ("http://host:5000", "sqlite:///mlflow.db", "file:mlruns", "databricks"):
        assert without_password(plain) == plain


def test_the_project_wins_over_the_variable(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = place.project()
    assert address_of(project) == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert address_of(project) == "http://there"
    chosen = project.model_copy(update={"track": TrackSection(mlflow="file:mlruns")})
    assert address_of(chosen) == "file:mlruns"


def made_by_hand(place: Place) -> Path:
    """The folder of a run with a few events, as a training leaves it."""
    folder: Path = place.store.run_folder("digits-1")
    place.store.write(
        folder / "run.json",
        Run(
            id="digits-1", project="digits", state="complete", created="2026-01-01T00:00:00+00:00",
            folder=str(folder), dataset="d", inputs={"train.epochs": "3", "long": "x" * 9000},
        ),
    )  # fmt: skip
    events: list[AnyEvent] = [
        RunStarted(time=1, steps=9, steps_per_epoch=3, world_size=1),
        *(
            StepDone(
                time=time_, step=step, epoch=0, loss=1 / step, learning_rate=0.1,
                samples_per_second=9, eta_seconds=1,
            )
            for step, time_ in ((1, 1.5), (2, 2.0), (3, 9.0))
        ),
        Evaluated(time=10, step=3, epoch=1, split="validation", metrics={"loss": float("nan")}),
        RunFinished(time=11, state="complete", step=3, seconds=9, metrics={"test/loss": 0.25}),
    ]  # fmt: skip
    log = EventLog(folder / "events.jsonl")
    for event in events:
        log.append(event)
    log.close()
    return folder


def test_a_database_takes_each_number_once(place: Place) -> None:
    folder = made_by_hand(place)
    place_of_it = TrackSection(mlflow="sqlite:///tracked.db")
    project = place.project().model_copy(update={"track": place_of_it})
    for _ in range(2):  # the second time there is nothing to send
        send_rest(project, folder)
        state = read_state(folder)
        assert state is not None, (folder / "tracking.log").read_text()
        assert state.position == (folder / "events.jsonl").stat().st_size
    with contextlib.closing(sqlite3.connect(place.root / "tracked.db")) as database:
        losses = database.execute("select step, value from metrics where key = 'train/loss'")
        assert sorted(losses) == [(1, 1.0), (3, pytest.approx(1 / 3))]  # step 2 came too soon
        best = database.execute("select value from metrics where key = 'best/test/loss'")
        assert best.fetchall() == [(0.25,)]
        runs = database.execute("select name, status from runs").fetchall()
        assert runs == [("digits-1", "FINISHED")]
        assert database.execute("select value from params where key='train.epochs'").fetchone() == ("3",)  # fmt: skip


def test_without_the_client_the_project_is_told_and_the_variable_is_a_notice(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelyard.spec.errors import MissingExtraError
    from modelyard.training import tracking

    folder = made_by_hand(place)
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://nowhere")
    with tracking.tracked(place.project(), folder):
        pass
    told = [e for e in read_events(folder / "events.jsonl") if isinstance(e, Noticed)]
    assert len(told) == 1 and "not installed" in told[0].message
    chosen = place.project().model_copy(update={"track": TrackSection(mlflow="http://nowhere")})
    with pytest.raises(MissingExtraError, match="mlflow"), tracking.tracked(chosen, folder):
        pass


@pytest.mark.slow
def test_a_dead_server_is_one_notice_and_gets_all_when_it_lives(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:pa55@127.0.0.1:{port}")
    project = place.project(epochs=2, max_steps=20)
    dataset = place.dataset(project)
    began = time.monotonic()
    run = train(project, dataset, place.store)
    assert run.reason == "step budget" and time.monotonic() - began < 90
    events = read_events(Path(run.folder) / "events.jsonl")
    told = [event.message for event in events if isinstance(event, Noticed)]
    assert len(told) == 1 and "MLflow at http://127.0.0.1" in told[0]
    assert read_state(Path(run.folder)) is None
    for file in Path(run.folder).glob("*.json*"):
        assert "pa55" not in file.read_text()
    with server(tmp_path / "mlflow", port) as address:
        assert train(project, dataset, place.store) == run  # complete: only the rest is sent
        (found,) = runs_at(address, "digits")
        metrics = values(found, "metrics")
        assert metrics["best/test/accuracy"] == pytest.approx(run.metrics["test/accuracy"])
        assert {"train/loss", "train/gradient_norm", "validation/loss"} <= metrics.keys()
        assert values(found, "params")["train.batch_size"] == "64"
        assert values(found, "tags")["modelyard.run"] == run.id
        assert found["info"]["status"] == "FINISHED"
        (Path(run.folder) / "tracking.json").unlink()  # it is found again by its tag
        more = train(place.project(epochs=2), dataset, place.store)
        (found,) = runs_at(address, "digits")
        assert values(found, "tags")["modelyard.reason"] == "all epochs"
        assert values(found, "metrics")["best/test/accuracy"] == pytest.approx(
            more.metrics["test/accuracy"]
        )
