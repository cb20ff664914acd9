"""The learning-rate finder on real digits, in all three frameworks, and as a command."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from modelyard.backends import open_backend
from modelyard.backends.base import OptimizerSettings
from modelyard.backends.source import build_model
from modelyard.cli.__main__ import main
from modelyard.data.cursor import Cursor
from modelyard.data.dataset import Split
from modelyard.spec.errors import TrainingError, UsageError
from modelyard.spec.records import AnyEvent, RunFinished, StepDone, TaskSpec
from modelyard.spec.signature import TensorInput
from modelyard.spec.training import TrainSection
from modelyard.spec.work import World
from modelyard.tasks import open_task
from modelyard.tasks.signature import signature_of
from modelyard.training.curves import draw_rates
from modelyard.training.loop import Course
from modelyard.training.range_test import RANGE_TEST, has_flown_off, smoothed, try_rates
from modelyard.training.rate_finder import as_text, curve_of, find_rate
from modelyard.training.train import train

RATES = np.geomspace(1e-6, 10, 80).tolist()
MODELS = Path(__file__).parents[1] / "backends" / "models"
BUILDS = {"pytorch": "cnn-small", "keras": "keras_models:cnn", "jax": "jax_nets:build"}


@pytest.mark.parametrize("name", BUILDS)
def test_each_framework_finds_a_rate_that_learns_digits(name: str, tmp_path: Path) -> None:
    pytest.importorskip({"pytorch": "torch"}.get(name, name))
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    task = TaskSpec(type="classification", target="digit", loss="cross-entropy", classes=tuple("0123456789"))  # fmt: skip
    spec = TensorInput(shape=(1, 8, 8))
    backend, events, signature = open_backend(name), list[AnyEvent](), signature_of(spec, task)
    backend.seed(0)
    model = build_model(MODELS, BUILDS[name], {}, signature, task, seed=0)
    state = backend.begin(model, task, OptimizerSettings(name="adamw"), signature, spec)
    split = Split(
        spec=spec,
        inputs=images,
        targets=digits.target.astype(np.int64),
        positions=np.arange(len(images)),
    )
    course = Course(
        folder=tmp_path,
        section=TrainSection(),
        steps=len(RATES),
        world=World(rank=0, size=1, rendezvous=""),
        backend=backend,
        task=open_task(task),
        cursor=Cursor(len(images), 64, 0),
        train=split,
        validation=replace(split, positions=np.arange(0)),
        emit=events.append,
        asked_to_stop=lambda: False,
    )
    try_rates(course, state, RATES)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert isinstance(events[-1], RunFinished) and events[-1].state == RANGE_TEST
    assert [event.learning_rate for event in steps] == RATES[: len(steps)]
    losses = [event.loss for event in steps]
    curve = curve_of(RATES[: len(steps)], losses, flew_off=len(steps) < len(RATES))
    assert curve.rose
    assert 5e-4 < curve.suggestion < 0.1


def test_the_smoothed_loss_has_no_bias_at_its_beginning() -> None:
    assert smoothed([3.0] * 5) == pytest.approx([3.0] * 5)
    assert smoothed([1.0, 2.0])[1] == pytest.approx((0.9 * 0.1 * 1 + 0.1 * 2) / (1 - 0.81))


def test_it_ends_where_the_loss_flies_off() -> None:
    assert has_flown_off([1.0, float("nan")]) and has_flown_off([float("inf")])
    assert not has_flown_off([1.0] * 20) and not has_flown_off([1.0, 99.0])
    assert has_flown_off([1.0] * 20 + [9.0] * 10)


def test_it_suggests_the_smaller_of_steepest_and_a_tenth() -> None:
    """A made curve: flat, a fall around 1e-3, lowest at 1e-1, then up."""
    rates = np.geomspace(1e-6, 1, 61)
    decades = np.log10(rates)
    losses = 2.0 - 1.5 / (1 + np.exp(-4 * (decades + 3))) + np.exp(8 * (decades + 0.5))
    curve = curve_of(rates.tolist(), losses.tolist(), flew_off=True)
    assert 5e-4 < curve.steepest < 1e-2 < curve.tenth * 10 < 1
    assert curve.suggestion == min(curve.steepest, curve.tenth)
    assert (
        curve.rose and not curve_of(rates[:45].tolist(), losses[:45].tolist(), flew_off=False).rose
    )
    text = as_text(curve).splitlines()
    assert "learning rate" in text[-1] and "1e-06" in text[-1] and any("•" in line for line in text)


def test_a_loss_that_never_falls_is_an_error() -> None:
    with pytest.raises(TrainingError, match="fell at no learning rate from 1e-06 on") as caught:
        curve_of(RATES, np.linspace(1, 3, len(RATES)).tolist(), flew_off=True)
    assert "--low" in caught.value.mend


def test_its_rate_trains_well_and_it_leaves_nothing_behind(place: Any, tmp_path: Path) -> None:
    project = place.project(workers=2)
    dataset = place.dataset(project)
    curve = find_rate(project, dataset, place.store, steps=60)
    assert curve.rose and 1e-3 < curve.suggestion < 0.1
    left = [path.name for path in place.store.root.iterdir()]
    assert not any(name == "runs" or name.startswith(".rates") for name in left), left
    draw_rates(curve, tmp_path / "rates.svg")
    assert (tmp_path / "rates.svg").read_text().startswith("<svg")
    optimizer = {"name": "adamw", "lr": curve.suggestion}
    run = train(place.project(epochs=3, optimizer=optimizer), dataset, place.store)
    assert run.metrics["test/accuracy"] > 0.85


def test_the_command_prints_what_to_use(place: Any, capsys: pytest.CaptureFixture[str]) -> None:
    page = place.root / "rates.html"
    where = ["--project", str(place.root)]
    assert main(["lr-find", "--steps", "40", "--plot", str(page), *where]) == 0
    printed = capsys.readouterr().out
    rate = printed.rpartition("train.optimizer.lr=")[2].strip()
    assert 1e-3 < float(rate) < 0.2 and "suggested  " in printed and "•" in printed
    assert "<svg" in page.read_text()
    assert main(["lr-find", "--steps", "40", "--json", *where]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["suggestion"] == pytest.approx(float(rate), rel=0.5)
    assert len(found["rates"]) == len(found["losses"]) == len(found["smooth"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--low", "1", "--high", "0.1"], "from 1 to 0.1 in 100 steps"),
        (["--steps", "3"], "20 steps or more"),
        (["--plot", "rates.png"], ".svg or .html"),
    ],
)
def test_what_is_no_range_or_no_picture_is_told_at_once(
    place: Any, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lr-find", *words, "--project", str(place.root)]) == UsageError.exit_code
    assert said in capsys.readouterr().err
