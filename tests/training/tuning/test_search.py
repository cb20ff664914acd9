"""The search proposes, is told, can be repeated, and says what is wrong with its space."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from modelyard.spec.errors import ProjectError, TrainingError, UsageError
from modelyard.spec.project import Project
from modelyard.spec.records import Run
from modelyard.training.tuning.search import Study, Trial, search

SPACE = {
    "train.optimizer.lr": {"low": 1e-4, "high": 1.0, "log": True},
    "train.batch_size": {"choices": [16, 32]},
}


def project(space: Mapping[str, Any], trials: int = 12) -> Project:
    return Project.model_validate(
        {
            "project": {"name": "x"},
            "data": {"source": "csv", "path": "x.csv"},
            "model": {"build": "mlp"},
            "tune": {"space": space, "trials": trials},
            "root": Path("/"),
        }
    )


def valley(fields: Mapping[str, Any]) -> Run:
    """A training whose loss is smallest at lr 0.01 and batch size 32."""
    import math

    loss = (math.log10(fields["train.optimizer.lr"]) + 2) ** 2 + (fields["train.batch_size"] == 16)
    return Run(
        id=f"x-{loss:.6f}", project="x", state="complete", created="", folder="", dataset="", metrics={"validation/loss": loss}
    )  # fmt: skip


def run_search(space: Mapping[str, Any] = SPACE, trials: int = 12, train: Any = valley) -> Study:
    return search(
        project(space, trials),
        higher_is_better=False,
        metric="loss",
        try_fields=train,
        on_trial=lambda trial: None,
    )


def test_later_trials_are_better_than_the_first() -> None:
    study = run_search(trials=25)
    assert study.best.value is not None and study.trials[0].value is not None
    assert study.best.value < study.trials[0].value
    assert study.best.fields["train.batch_size"] == 32


def test_the_same_search_proposes_the_same_trials() -> None:
    assert [trial.fields for trial in run_search().trials] == [
        trial.fields for trial in run_search().trials
    ]


def test_a_failed_trial_does_not_end_the_search() -> None:
    def sometimes(fields: Mapping[str, Any]) -> Run:
        if fields["train.batch_size"] == 16:
            raise TrainingError("loss became NaN")
        return valley(fields)

    study = run_search(train=sometimes)
    assert any(trial.error == "loss became NaN" for trial in study.trials)
    assert study.best.fields["train.batch_size"] == 32


def test_all_failed() -> None:
    def never(fields: Mapping[str, Any]) -> Run:
        raise TrainingError("loss became NaN")

    study = run_search(trials=2, train=never)
    with pytest.raises(TrainingError, match="loss became NaN"):
        _ = study.best


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"low": 1.0, "high": 0.1}, "not below"),
        ({"low": 0.0, "high": 0.1, "log": True}, "above 0"),
        ({"low": 1.0}, "missing"),
        ({"choices": []}, "empty"),
    ],
)
def test_a_space_that_makes_no_sense(item: dict[str, Any], words: str) -> None:
    with pytest.raises(ProjectError, match=words):
        run_search({"train.optimizer.lr": item})


def test_nothing_to_search() -> None:
    with pytest.raises(UsageError, match="nothing to search"):
        run_search({})


def test_higher_may_be_better() -> None:
    trials = tuple(Trial(number=n, fields={}, value=v) for n, v in enumerate([0.1, 0.9, None]))
    assert Study(metric="accuracy", higher_is_better=True, trials=trials).best.number == 1
