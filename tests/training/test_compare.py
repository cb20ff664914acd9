"""Runs side by side."""

from pathlib import Path

import pytest
from PIL import Image

from modelyard.spec.errors import UsageError
from modelyard.spec.records import AnyEvent, Evaluated, Machine, Run, Spent, StepDone
from modelyard.training.compare import compare, plot, table


def made(identifier: str, rate: str, accuracy: float, **fields: object) -> Run:
    record: dict[str, object] = {
        "id": identifier, "project": "digits", "state": "complete", "created": "2026-01-01T00:00:00+00:00",
        "folder": "", "dataset": "d", "step": 10, "steps": 20,
        "inputs": {"train.optimizer.lr": rate, "train.epochs": "3", "code": "sha256:" + rate * 20},
        "metrics": {"test/accuracy": accuracy, "test/loss": 1 - accuracy},
        "spent": Spent(seconds=12.34), "versions": {"torch": "2.13"}, **fields,
    }  # fmt: skip
    return Run(**record)  # type: ignore[arg-type]


BETTER = {"accuracy": True, "loss": False}


def test_what_differs_is_told_and_the_best_is_marked() -> None:
    runs = [made("digits-a", "0.1", 0.5), made("digits-b", "0.2", 0.75, cost=2.5)]
    found = compare(runs, BETTER)
    rows = {row.name: row for row in found.rows}
    assert rows["train.optimizer.lr"].values == ("0.1", "0.2")
    assert "train.epochs" not in rows and "torch" not in rows  # they are the same
    assert rows["test/accuracy"].best == 1 and rows["test/loss"].best == 1
    assert rows["cost"].values == (None, 2.5)
    assert rows["steps"].values == ("10 of 20", "10 of 20")
    lines = table(found)
    assert {"": "test/accuracy", "digits-a": "0.5", "digits-b": "0.75 *"} in lines
    code = next(line for line in lines if line[""] == "input: code")
    assert "…" in str(code["digits-a"]) and len(str(code["digits-a"])) <= 28


def test_three_runs_and_equal_metrics_without_a_star() -> None:
    here = Machine(host="h", system="s", processor="fast", cores=2, memory=1)
    runs = [made("a", "0.1", 0.5), made("b", "0.1", 0.5, machine=here), made("c", "0.1", 0.5)]
    rows = {row.name: row for row in compare(runs, BETTER).rows}
    assert rows["test/accuracy"].best is None
    assert rows["processor"].values == (None, "fast", None)


def test_one_run_cannot_be_compared() -> None:
    with pytest.raises(UsageError, match="two runs"):
        compare([made("a", "0.1", 0.5)], BETTER)
    with pytest.raises(UsageError, match="a is named twice"):
        compare([made("a", "0.1", 0.5)] * 2, BETTER)


def events(rate: float) -> list[AnyEvent]:
    found: list[AnyEvent] = [
        StepDone(
            time=step, step=step, epoch=step / 5, loss=1 / (step * rate), learning_rate=rate,
            samples_per_second=1, eta_seconds=0,
        )
        for step in range(1, 20)
    ]  # fmt: skip
    found += [
        Evaluated(
            time=9, step=step, epoch=step / 5, split="validation", metrics={"loss": 1.0, "accuracy": 0.5}
        )
        for step in (5, 10)
    ]  # fmt: skip
    return found


def test_curves_are_drawn_in_three_formats(tmp_path: Path) -> None:
    runs = [made("a", "0.1", 0.5), made("b", "0.2", 0.5)]
    for name in ("curves.png", "curves.svg", "curves.html"):
        plot(runs, [events(0.1), events(0.2)], "accuracy", tmp_path / name)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 1000
        colors = {color for _, color in picture.convert("RGB").getcolors(1_000_000) or []}
    assert (0x3B, 0x7D, 0xD8) in colors and (0xE0, 0x7B, 0x39) in colors
    assert (tmp_path / "curves.svg").read_text().count("<path") > 10
    page = (tmp_path / "curves.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page.replace("data:image", "")
    plot(runs, [[], []], "loss", tmp_path / "empty.png")
    with pytest.raises(UsageError, match=r"\.png, \.svg or \.html|what kind"):
        plot(runs, [[], []], "loss", tmp_path / "curves.gif")
