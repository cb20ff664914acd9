"""TensorBoard itself reads what is written."""

from pathlib import Path

import pytest

from modelyard.spec.records import AnyEvent, Evaluated, Restarted, RunFinished, StepDone
from modelyard.store.events import EventLog
from modelyard.training.tensorboard import TensorBoardWriter, convert, crc32c


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


def test_crc32c_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of RFC 3720's polynomial
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


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
