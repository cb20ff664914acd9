"""The page of built-in models: all are on it, and its examples are what the models take."""

import re
import tomllib
from pathlib import Path

import pytest

from modelyard.backends.families import FAMILIES, names_for
from modelyard.spec.project import DataSection, ModelSection, TaskSection, TrainSection

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
EXAMPLES = [
    tomllib.loads(text) for text in re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
]  # fmt: skip
SECTIONS = {"data": DataSection, "model": ModelSection, "task": TaskSection, "train": TrainSection}


def test_every_model_has_its_part_and_an_example() -> None:
    assert names_for("pytorch") == sorted(set(re.findall(r"^## ([a-z-]+)$", PAGE, re.MULTILINE)))
    assert {example["model"]["build"] for example in EXAMPLES} == set(names_for("pytorch"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example["model"]["build"]))
def test_an_example_says_what_can_be_said(example: dict[str, dict[str, object]]) -> None:
    for name, section in example.items():
        SECTIONS[name].model_validate(section)
    model = ModelSection.model_validate(example["model"])
    args = FAMILIES[model.build].args
    complaints = {
        key: args[key].complaint(value) if key in args else "unknown"
        for key, value in model.args.items()
    }
    assert not any(complaints.values()), complaints
