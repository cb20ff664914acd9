"""What a project leaves open is the optimizer's own."""

import json
from typing import Any

import pytest

from modelyard.backends.base import Execution, OptimizerSettings
from modelyard.spec.errors import TrainingError
from modelyard.spec.training import TrainSection
from modelyard.training.optimizer import check_known, optimizer_settings


def settings(**fields: Any) -> OptimizerSettings:
    section = TrainSection.model_validate({"optimizer": fields})
    return optimizer_settings(section, Execution(samples=7))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": False, "weight_decay": 0.01}),
        ("adam", {"betas": (0.9, 0.999), "epsilon": 1e-8, "weight_decay": 0.0}),
        ("adamw", {"betas": (0.9, 0.999), "epsilon": 1e-8, "weight_decay": 0.01}),
        ("rmsprop", {"rho": 0.99, "momentum": 0.0, "weight_decay": 0.0}),
        ("adagrad", {"epsilon": 1e-10, "weight_decay": 0.0}),
        ("lion", {"betas": (0.9, 0.99), "weight_decay": 0.01}),
    ],
)
def test_defaults(name: str, wanted: dict[str, Any]) -> None:
    found = settings(name=name)
    assert {field: getattr(found, field) for field in wanted} == wanted
    assert found.execution.samples == 7


def test_what_is_said_is_taken() -> None:
    assert settings(name="sgd", momentum=0.0, weight_decay=0.0).momentum == 0.0
    assert settings(name="lion", betas=(0.8, 0.9), weight_decay=1.0).betas == (0.8, 0.9)
    assert settings(name="lion", weight_decay=1.0).weight_decay == 1.0


def test_a_backend_of_before_is_not_asked_for_what_it_would_pass_over() -> None:
    class Before:
        """As one of another package that was written against an older contract."""

        name, averages, treats_by_name = "before", False, False
        adapts = recomputes = False

    class Now(Before):
        averages = treats_by_name = adapts = recomputes = True

    asked = {
        "freeze": ["a.*"],
        "clip_value": 0.5,
        "ema": 0.9,
        "lora": {"rank": 2},
        "gradient_checkpointing": True,
        "optimizer": {"layer_decay": 0.5, "groups": [{"match": "*"}]},
    }
    section = TrainSection.model_validate_json(json.dumps(asked))
    with pytest.raises(TrainingError) as caught:
        check_known(Before(), section)  # type: ignore[arg-type]
    for field in (
        "freeze",
        "clip_value",
        "optimizer.groups",
        "optimizer.layer_decay",
        "ema",
        "lora",
        "gradient_checkpointing",
    ):
        assert f"no train.{field}" in caught.value.what
    assert "no_decay" not in caught.value.what
    check_known(Now(), section)  # type: ignore[arg-type]
    check_known(Before(), TrainSection())  # type: ignore[arg-type]
