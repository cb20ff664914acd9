"""TensorBoard itself reads what is written."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelyard.spec.records import AnyEvent, Evaluated, Restarted, RunFinished, StepDone
from modelyard.store.events import EventLog
from modelyard.training.tensorboard import Follower, RunFollower, TensorBoardWriter, convert
from modelyard.training.train import train


def step(number: int, loss: float, norm: float | None = None) -> StepDone:
    return StepDone(
        time=1000.0 + number,
        step=number,
        epoch=number / 10,
        loss=loss,
        learning_rate=0.01,
        samples_per_second=500.0,
        eta_seconds=3.0,
        gradient_norm=norm,
    )


def read(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Tag to (step, wall time, value), as TensorBoard loads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(e.step, e.wall_time, e.value) for e in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def test_a_run_is_read_back_by_tensorboard(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    events: list[AnyEvent] = [
        step(1, 2.5, norm=1.5),
        step(300, 0.5),
        Evaluated(time=1301, step=300, epoch=30, split="validation", metrics={"accuracy": 0.75}),
        RunFinished(
            time=1400, state="complete", step=300, seconds=9, metrics={"test/accuracy": 0.5}
        ),
    ]
    for event in events:
        log.append(event)
    log.close()
    path = convert(tmp_path, tmp_path / "logs")
    assert convert(tmp_path, tmp_path / "logs") == path  # again: replaced, not doubled
    found = read(tmp_path / "logs")
    assert found["train/loss"] == [(1, 1001.0, 2.5), (300, 1300.0, 0.5)]
    assert found["train/gradient_norm"] == [(1, 1001.0, 1.5)]
    assert found["validation/accuracy"] == [(300, 1301.0, 0.75)]
    assert found["best/test/accuracy"] == [(300, 1400.0, 0.5)]
    assert found["train/learning_rate"][0][2] == pytest.approx(0.01)


def test_steps_trained_again_appear_once(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for event in [step(10, 3.0), step(20, 2.0), Restarted(time=1, step=10), step(15, 9.0)]:
        log.append(event)
    log.close()
    convert(tmp_path, tmp_path / "logs")
    assert [(s, v) for s, _, v in read(tmp_path / "logs")["train/loss"]] == [(10, 3.0), (15, 9.0)]


def test_the_observer_writes_while_training(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    writer(step(1, 2.0))
    writer(step(2, 1e300))
    assert [value for _, _, value in read(tmp_path)["train/loss"]] == [2.0, float("inf")]
    writer.close()


def test_a_running_training_is_followed_and_a_restart_takes_back(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append(step(10, 3.0))
    follower = RunFollower(tmp_path, tmp_path / "logs")
    follower.update()  # nothing is new
    log.append(step(20, 2.0))
    follower.update()
    assert [s for s, _, _ in read(tmp_path / "logs")["train/loss"]] == [10, 20]
    for event in (Restarted(time=1021, step=10), step(15, 9.0)):
        log.append(event)
    log.close()
    follower.update()
    found = read(tmp_path / "logs")["train/loss"]
    assert [(s, v) for s, _, v in found] == [(10, 3.0), (15, 9.0)]


def ask(port: int, path: str, body: dict[str, object] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/data/plugin/{path}",
        data=data,
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def wait_for(found: Callable[[], Any], seconds: float = 90.0) -> Any:
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, KeyError):
            if last := found():
                return last
        time.sleep(0.3)
    raise AssertionError(f"not within {seconds} s")


@pytest.mark.slow
def test_tensorboard_itself_shows_all_of_a_training_while_it_runs(slow_place: Any) -> None:
    """The real command, the real TensorBoard, a real training beside it."""
    place = slow_place
    project = place.project(epochs=1, profile=True)
    train(project, place.dataset(project), place.store)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "modelyard.cli", "tensorboard", "--port", str(port)]
    with subprocess.Popen(command, cwd=place.root, stderr=subprocess.DEVNULL) as board:
        try:
            (run,) = wait_for(lambda: ask(port, "scalars/tags")).keys()
            scalars = wait_for(lambda: ask(port, "scalars/tags")[run])
            assert {"train/loss", "train/gradient_norm", "use/busy_cores", "use/memory_gb", "validation/accuracy", "best/test/accuracy"} <= scalars.keys()  # fmt: skip
            bars = wait_for(lambda: ask(port, "histograms/tags")[run])
            assert {"weights/layers.1.weight", "gradients/layers.1.weight"} <= bars.keys()
            assert "best/test/confusion_matrix" in wait_for(lambda: ask(port, "images/tags")[run])
            asked = {"experimentName": "", "colParams": [], "startIndex": 0, "sliceSize": 10, "allowedStatuses": ["STATUS_SUCCESS", "STATUS_RUNNING"]}  # fmt: skip
            (group,) = wait_for(lambda: ask(port, "hparams/session_groups", asked)["sessionGroups"])
            assert group["hparams"]["train.batch_size"] == 64
            traces = list((place.store.root / "tensorboard").glob("*/*.pt.trace.json"))
            assert len(traces) == 1 and "ProfilerStep" not in traces[0].name
            events = json.loads(traces[0].read_text())["traceEvents"]
            assert any("addmm" in str(event.get("name")) for event in events)
            project = place.project(epochs=1, seed=5)
            second = train(project, place.dataset(project), place.store)
            wait_for(lambda: "best/test/accuracy" in ask(port, "scalars/tags")[second.id])
        finally:
            board.send_signal(signal.SIGINT)
            board.wait(20)
    assert Follower(place.store, place.root / "again").update() is None
