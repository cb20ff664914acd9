"""Weights by name: what is frozen, decays, or learns at a rate of its own, and what is a layer."""

from typing import Any

import pytest

from modelyard.backends.base import Lora, OptimizerSettings, WeightGroup
from modelyard.backends.parameter_rules import layers_of, treatments
from modelyard.spec.errors import ModelError, TrainingError

WEIGHTS = {
    "embed.weight": 2,
    "blocks.0.attention.weight": 2,
    "blocks.0.norm.weight": 1,
    "blocks.1.attention.weight": 2,
    "blocks.1.norm.weight": 1,
    "norm.weight": 1,
    "head.weight": 2,
    "head.bias": 1,
}


def treated(**fields: Any) -> dict[str, Any]:
    return treatments(WEIGHTS, OptimizerSettings(name="adamw", weight_decay=0.1, **fields))


def test_norms_and_biases_do_not_decay_and_others_can_be_spared() -> None:
    found = treated(no_decay=("embed.*",))
    assert {name for name, one in found.items() if one.decay} == {
        "blocks.0.attention.weight",
        "blocks.1.attention.weight",
        "head.weight",
    }
    assert all(one.trained and one.scale == 1.0 for one in found.values())


def test_the_first_group_that_matches_counts() -> None:
    groups = (
        WeightGroup(match="head.*", lr_scale=10.0),
        WeightGroup(match="*weight", lr_scale=0.5, weight_decay=0.3),
    )
    found = treated(groups=groups)
    assert (found["head.weight"].scale, found["head.weight"].decay) == (10.0, 0.1)
    assert (found["head.bias"].scale, found["head.bias"].decay) == (10.0, 0.0)
    assert (found["embed.weight"].scale, found["embed.weight"].decay) == (0.5, 0.3)
    assert found["norm.weight"].decay == 0.0


def test_what_is_frozen() -> None:
    found = treated(freeze=("embed.*", "blocks.?.*"))
    assert {name for name, one in found.items() if one.trained} == {
        "norm.weight",
        "head.weight",
        "head.bias",
    }


def test_layer_by_layer() -> None:
    """The last layer has the whole rate; a norm goes with the layer before it."""
    found = treated(layer_decay=0.5, groups=(WeightGroup(match="head.bias", lr_scale=3.0),))
    assert {name: one.scale for name, one in found.items()} == {
        "embed.weight": 0.125,
        "blocks.0.attention.weight": 0.25,
        "blocks.0.norm.weight": 0.25,
        "blocks.1.attention.weight": 0.5,
        "blocks.1.norm.weight": 0.5,
        "norm.weight": 0.5,
        "head.weight": 1.0,
        "head.bias": 3.0,
    }


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        # PyTorch: a stack, and blocks of a residual network
        ("0.weight 0.bias 2.weight 2.bias", "0.weight 0.bias | 2.weight 2.bias"),
        (
            "conv1.weight bn1.bias layer1.0.conv1.weight layer1.0.conv2.weight layer1.1.conv1.weight fc.weight",
            "conv1.weight bn1.bias | layer1.0.conv1.weight layer1.0.conv2.weight | layer1.1.conv1.weight | fc.weight",
        ),
        # a model's own parameters go with its first layer
        ("pos_weight patch.proj.weight head.weight", "pos_weight patch.proj.weight | head.weight"),
        ("vectors.weight pos_weight blocks.0.q.weight", "pos_weight vectors.weight | blocks.0.q.weight"),
        ("norm.scale patch.weight head.weight", "norm.scale patch.weight | head.weight"),
        ("a_weight b_weight c", "a_weight b_weight c"),
        # Keras counts from the second on
        (
            "net/block/query/weight net/block/value/weight net/block_1/query/weight net/dense/weight",
            "net/block/query/weight net/block/value/weight | net/block_1/query/weight | net/dense/weight",
        ),
        # plain JAX functions
        ("w1 b1 w2 b2", "w1 b1 | w2 b2"),
        # a number in the name of the whole model says nothing
        ("net50.conv.weight net50.fc.weight head.weight", "net50.conv.weight | net50.fc.weight | head.weight"),
    ],
)  # fmt: skip
def test_what_a_layer_is(names: str, layers: str) -> None:
    weights = {name: 2 if "w" in name.rpartition(".")[2] else 1 for name in names.split()}
    assert " | ".join(" ".join(layer) for layer in layers_of(weights)) == layers


@pytest.mark.parametrize(
    ("fields", "field", "close"),
    [
        ({"freeze": ("block.*",)}, "train.freeze", "blocks.*"),
        ({"no_decay": ("embd.weight",)}, "train.optimizer.no_decay", "embed.weight"),
        ({"groups": (WeightGroup(match="haed.*"),)}, "train.optimizer.groups", "head.*"),
        ({"freeze": ("zzz",)}, "train.freeze", "embed.weight"),
    ],
)
def test_a_pattern_that_matches_nothing_lists_close_names(
    fields: dict[str, Any], field: str, close: str
) -> None:
    with pytest.raises(TrainingError) as caught:
        treated(**fields)
    assert caught.value.what.startswith(f"{field}: ") and "none of the model's 8 weights" in str(
        caught.value
    )
    assert close in caught.value.mend


def test_freezing_beside_adapters_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"beside train\.lora"):
        treated(freeze=("embed.*",), lora=Lora(rank=2, alpha=4.0))


def test_something_must_be_left_to_train() -> None:
    with pytest.raises(ModelError, match=r"train\.freeze matches all"):
        treated(freeze=("*",))
