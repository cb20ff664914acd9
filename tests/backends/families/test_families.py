"""The table of families: what is refused before any framework is asked, and that functions and table agree."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelyard.backends import BUILT_IN_MODELS
from modelyard.backends.families import (
    FAMILIES,
    FRAMEWORKS,
    check,
    function_of,
    names_for,
    split_name,
    tower_places,
)
from modelyard.spec.errors import ModelError

PACKAGES = {"pytorch": "torch", "keras": "keras", "jax": "flax"}
TABLE = (("user", 3), ("age", 1), ("item", 2))


@pytest.mark.parametrize("name", sorted(BUILT_IN_MODELS))
def test_a_function_takes_what_the_table_says_with_the_same_defaults(name: str) -> None:
    pytest.importorskip(PACKAGES[BUILT_IN_MODELS[name]])
    function = function_of(name)
    offered = {"input_shape", "input_shapes", "outputs", "vocabulary", "columns", "seed"}
    found = {
        key: parameter.default
        for key, parameter in inspect.signature(function).parameters.items()
        if key not in offered
    }
    family = FAMILIES[split_name(name)[1]]
    assert found == {key: arg.default for key, arg in family.args.items()}
    assert all(not arg.complaint(arg.default) for arg in family.args.values())
    assert family.summary and all(arg.meaning for arg in family.args.values())
    assert "->" in str(function.__doc__) or "transformer" in name


def test_every_framework_has_every_family() -> None:
    assert names_for("pytorch") == names_for("keras") == names_for("jax")
    assert set(BUILT_IN_MODELS.values()) == set(FRAMEWORKS)
    assert BUILT_IN_MODELS["cnn-small"] == "pytorch" and "keras/cnn-small" not in BUILT_IN_MODELS
    assert function_of("cnn-small") is function_of("cnn")


@pytest.mark.parametrize(
    ("name", "args", "shape", "given", "what", "mend"),
    [
        ("mlp", {"hiden": [3]}, (4,), {}, "did you mean 'hidden'?", "it takes: hidden, dropout"),
        ("mlp", {"hidden": 64}, (4,), {}, "model.args.hidden = 64, but mlp needs a list", "default: (64, 64)"),
        ("mlp", {"dropout": 1}, (4,), {}, "from 0 to less than 1", "left out"),
        ("mlp", {}, (4,), {"vocabulary": 9}, "a sample of this data is tokens of shape (4,)", "text-small, rnn"),
        ("cnn", {}, (4,), {}, "cnn takes pictures (channels, height, width)", "use one of: mlp"),
        ("cnn", {"channels": [4, 8, 16]}, (3, 9, 7), {}, "at least 8 pixels a side, not 9 x 7", "channels"),
        ("cnn-small", {}, (3, 2, 8), {}, "at least 4 pixels", "channels"),
        ("keras/resnet", {"blocks": 0}, (3, 9, 7), {}, "a whole number from 1 on", "blocks"),
        ("rnn", {"kind": "ltsm"}, (9, 7), {}, "needs one of 'rnn', 'lstm', 'gru'", "default: 'lstm'"),
        ("rnn", {}, (7,), {}, "numbers of shape (7,)", "mlp"),
        ("text-small", {}, (7,), {}, "text-small takes texts", "mlp"),
        ("jax/transformer-encoder", {"heads": 3}, (9, 7), {}, "width = 64 cannot be divided among heads = 3", "heads"),
        ("two-tower", {"left": ["user"]}, (6,), {}, "two-tower takes rows of a table", "mlp"),
        ("two-tower", {}, (6,), {"columns": TABLE}, "needs model.args.left", "user, age, item"),
        ("two-tower", {"left": ["usr"]}, (6,), {"columns": TABLE}, "did you mean 'user'?", "user, age, item"),
        ("two-tower", {"left": ["user"], "right": ["user", "item"]}, (6,), {"columns": TABLE}, "both towers have user", "own"),
        ("fusion", {}, (3, 9, 7), {}, "fusion takes samples of several parts", "cnn"),
        ("cnn", {}, {"image": (3, 9, 7), "table": (4,)}, {}, "has several parts: image, table", "use fusion"),
        ("fusion", {"channels": [4, 8, 16, 32]}, {"image": (3, 9, 7), "table": (4,)}, {}, "at least 16 pixels", "channels"),
        ("two-tower", {"left": ["user", "age", "item"]}, (6,), {"columns": TABLE}, "the first tower has all columns", "own"),
    ],
)  # fmt: skip
def test_what_a_family_does_not_take_is_told_without_its_framework(
    name: str, args: dict[str, Any], shape: Any, given: dict[str, Any], what: str, mend: str
) -> None:  # fmt: skip
    with pytest.raises(ModelError) as caught:
        check(name, args, shape, **given)
    assert what in caught.value.what and mend in str(caught.value.mend)


def test_towers_are_given_the_features_of_their_columns() -> None:
    assert tower_places(TABLE, ("user",), ()) == ([0, 1, 2], [3, 4, 5])
    assert tower_places(TABLE, ("item",), ("user",)) == ([4, 5], [0, 1, 2])


def test_the_table_loads_no_framework() -> None:
    code = (
        "import sys; from modelyard.backends.families import check; check('jax/mlp', {}, (4,)); "
        "print(sorted({'torch', 'keras', 'tensorflow', 'jax', 'flax'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path())
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
