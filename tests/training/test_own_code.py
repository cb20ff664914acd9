"""A loss and metrics of the user's own in a whole training, and losses with weights over several workers."""

from typing import Any

import pytest

import modelyard
from modelyard.spec.errors import ModelError, ProjectError, UsageError
from modelyard.spec.project import Project
from modelyard.spec.read import read_project
from modelyard.spec.records import Run
from modelyard.training.inputs import code_of
from modelyard.training.own_metrics import MOST_BYTES, check_size
from modelyard.training.train import train

Place = Any
OWN = """
import numpy as np
import torch

def cross_entropy(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

def hits(outputs, targets):
    assert outputs.dtype == np.float32 and outputs.shape == (len(targets), 10)
    return float((outputs.argmax(axis=1) == targets).mean())

def sum_of_order(outputs, targets):
    return float(np.arange(len(outputs)) @ outputs[:, 0]) / len(outputs) ** 2

def nothing(outputs, targets):
    return float("nan")
"""
METRICS = {
    "task.metrics": ["own:hits", "own:sum_of_order"],
    "task.lower_is_better": ["sum_of_order"],
}


def asked(place: Place, fields: dict[str, Any], **train: Any) -> Project:
    (place.root / "own.py").write_text(OWN)
    given = {"epochs": 1, **train}
    return read_project(
        place.root / "yard.toml", {**fields, **{f"train.{k}": v for k, v in given.items()}}
    )


def run(place: Place, fields: dict[str, Any], **train_fields: Any) -> Run:
    project = asked(place, fields, **train_fields)
    return train(project, place.dataset(project), place.store)


def test_own_loss_and_metrics_are_those_of_the_built_in_ones(place: Place) -> None:
    """For one worker and for two; the metric that chooses the best checkpoint is the user's."""
    fields = {"task.loss": "own:cross_entropy", **METRICS, "model.args": {"dropout": 0.0}}
    built_in = run(place, {"model.args": {"dropout": 0.0}})
    alone = run(place, fields, metric="hits")
    two = run(place, fields, metric="hits", workers=2)
    for mine in (alone, two):
        assert mine.metrics["validation/hits"] == pytest.approx(mine.metrics["validation/accuracy"])
        assert mine.metrics["test/hits"] == pytest.approx(mine.metrics["test/accuracy"])
        assert mine.metrics["test/loss"] == pytest.approx(built_in.metrics["test/loss"], rel=1e-3)
        # Depends on the order of the samples, which several workers must not change.
        order = "validation/sum_of_order"
        assert mine.metrics[order] == pytest.approx(alone.metrics[order], rel=1e-3)
    assert "log_loss" in {name.rpartition("/")[2] for name in alone.metrics}
    bundle = modelyard.export(asked(place, fields, metric="hits"), alone)
    assert bundle.parity.largest_error <= 1e-4


def test_the_loss_may_change_without_preparing_the_data_anew(place: Place) -> None:
    first, second = asked(place, {}), asked(place, {"task.class_weights": "balanced"})
    plain, balanced = place.dataset(first), place.dataset(second)
    assert plain.id == balanced.id and plain.task.class_weights == ()
    assert len(balanced.task.class_weights) == 10
    assert min(balanced.task.class_weights) == pytest.approx(1.0, abs=0.1)


def test_weighted_losses_are_the_same_for_any_workers_and_pieces(place: Place) -> None:
    fields = {
        "task.loss": "focal",
        "task.label_smoothing": 0.1,
        "task.class_weights": {"3": 4.0, "8": 0.25},
        "model.args": {"dropout": 0.0},
    }
    losses = [
        run(place, fields, **how).metrics["test/loss"]
        for how in ({}, {"workers": 2}, {"micro_batch": 5})
    ]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-3)


def test_a_changed_metric_is_another_run(place: Place) -> None:
    project = asked(place, METRICS)
    before = code_of(project)
    (place.root / "own.py").write_text(OWN + "\n# changed\n")
    assert code_of(project) != before


def test_a_metric_that_gives_no_number_ends_the_training(place: Place) -> None:
    with pytest.raises(ModelError, match=r"the metric 'nothing' \(.*own.py:\d+\) gave nan"):
        run(place, {"task.metrics": ["own:nothing"]}, epochs=0.2)


def test_an_unknown_metric_is_told_as_a_mistake_of_the_project(place: Place) -> None:
    with pytest.raises(ProjectError) as caught:
        run(place, METRICS, metric="acc")
    assert (
        "train.metric: 'acc' is not a metric of this classification; expected one of "
        "hits, sum_of_order, loss, log_loss, accuracy" in str(caught.value)
    )
    assert "did you mean 'accuracy'?" in str(caught.value)


def test_a_search_over_the_loss_is_not_judged_by_it(place: Place) -> None:
    space = {"tune.space": {"task.label_smoothing": {"low": 0.0, "high": 0.2}}}
    with pytest.raises(ProjectError, match=r"'loss' itself changes with task\.label_smoothing"):
        modelyard.tune(asked(place, {**space, "tune.trials": 2}, metric="loss"))
    study = modelyard.tune(asked(place, {**space, "tune.trials": 2}, metric="log_loss"))
    assert len({trial.fields["task.label_smoothing"] for trial in study.trials}) == 2
    assert study.best.value is not None and not study.higher_is_better


def test_too_many_outputs_for_own_metrics_are_refused() -> None:
    check_size(MOST_BYTES // 8, 1)
    with pytest.raises(UsageError, match=r"50000000 samples x 10 numbers are 4\.0 GB"):
        check_size(50_000_000, 10)
