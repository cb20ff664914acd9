"""The optimizer's step by its kernels alone is, bit for bit, the step of torch's own ``step``."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from modelyard.backends.base import OptimizerSettings, WeightGroup
from modelyard.backends.pytorch_optimizer import Update, make_optimizer, treat
from modelyard.backends.pytorch_parallel import running_statistics
from modelyard.spec.errors import ModelError

NAMES = ["sgd", "adam", "adamw", "rmsprop", "adagrad", "lion"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))


def make(model: nn.Module, name: str) -> torch.optim.Optimizer:
    settings = OptimizerSettings(name=name, weight_decay=0.1)
    return make_optimizer(model, settings, treat(model, settings))


def plain(optimizer: torch.optim.Optimizer) -> Callable[[float], None]:
    """As torch's documentation teaches it."""

    def update(rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def train(model: nn.Module, update: Callable[[float], None], steps: range) -> None:
    for step in steps:
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        model(inputs).square().mean().backward()
        update(1e-2 / (1 + step))


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_many_steps_are_those_of_torch(name: str) -> None:
    ours, theirs = network(), network()
    by_torch, optimizer = make(theirs, name), make(ours, name)
    train(ours, Update(optimizer), range(20))
    train(theirs, plain(by_torch), range(20))
    assert same(ours, theirs)
    kept, known = optimizer.state_dict()["state"], by_torch.state_dict()["state"]
    for place, quantities in known.items():
        for quantity, value in quantities.items():
            assert torch.equal(kept[place][quantity], value), (place, quantity)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"nesterov": True}], ids=str)
def test_every_kind_of_descent_is_that_of_torch(options: dict[str, Any]) -> None:
    ends = []
    for update in (Update, plain):
        model = network()
        settings = OptimizerSettings(name="sgd", weight_decay=0.1, **options)
        optimizer = make_optimizer(model, settings, treat(model, settings))
        train(model, update(optimizer), range(6))
        ends.append(model)
    assert same(*ends)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adagrad"])
def test_the_kernels_are_called_themselves(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first step: torch's own ``step`` would cost a small model more than its arithmetic."""
    model = network()
    optimizer = make(model, name)
    update, called = Update(optimizer), []
    own = optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda: (called.append(1), own()))
    train(model, update, range(4))
    assert len(called) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_without_a_gradient_is_left_alone(name: str) -> None:
    ours, theirs = network(), network()
    mine, by_torch = Update(make(ours, name)), plain(make(theirs, name))
    for model, update in ((ours, mine), (theirs, by_torch)):
        train(model, update, range(3))
        for frozen in (True, False):
            model[0].requires_grad_(not frozen)
            train(model, update, range(3, 6))
    assert same(ours, theirs)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adagrad"])
def test_a_state_that_was_replaced_is_the_one_that_is_used(name: str) -> None:
    ours = network()
    optimizer = make(ours, name)
    update = Update(optimizer)
    train(ours, update, range(4))
    weights = copy.deepcopy(ours.state_dict())
    state = copy.deepcopy(optimizer.state_dict()["state"])
    train(ours, update, range(4, 8))
    after = copy.deepcopy(ours.state_dict())
    ours.load_state_dict(weights)
    for place, parameter in enumerate(p for g in optimizer.param_groups for p in g["params"]):
        optimizer.state[parameter] = state[place]
    update.forget()
    train(ours, update, range(4, 8))
    assert all(torch.equal(after[key], value) for key, value in ours.state_dict().items())


def test_what_is_frozen_by_name_or_by_hand_has_no_state_and_stays() -> None:
    model = network()
    model[3].bias.requires_grad_(False)
    settings = OptimizerSettings(name="adamw", weight_decay=0.1, freeze=("0.*",))
    optimizer = make_optimizer(model, settings, treat(model, settings))
    before = copy.deepcopy(model.state_dict())
    train(model, Update(optimizer), range(5))
    trained = {"1.weight", "1.bias", "3.weight"}
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == trained and len(optimizer.state) == len(trained)


def test_a_model_without_anything_to_train_is_refused() -> None:
    with pytest.raises(ModelError, match="nothing to train: none of its parameters"):
        treat(network().requires_grad_(False), OptimizerSettings(name="sgd"))


@pytest.mark.parametrize("name", NAMES)
def test_groups_have_their_own_rates(name: str) -> None:
    """A tenth of the rate for one layer: the same as a training with a tenth, where the other layer is frozen."""
    ends = []
    for scale, rate in ((0.1, 1.0), (1.0, 0.1)):
        model = network()
        groups = (WeightGroup(match="3.*", lr_scale=scale, weight_decay=0.2),)
        settings = OptimizerSettings(name=name, groups=groups, freeze=("0.*", "1.*"))
        update = Update(make_optimizer(model, settings, treat(model, settings)))
        train(model, lambda at, update=update, rate=rate: update(at * rate), range(6))  # type: ignore[misc]
        ends.append(model[3].weight.detach().clone())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-6, atol=1e-7)
    assert not torch.equal(ends[0], network()[3].weight)


@pytest.mark.parametrize(
    ("freeze", "stays"), [("1.*", True), ("1.weight", False), ("[01].*", True)]
)
def test_a_batch_norm_that_is_frozen_as_a_whole_keeps_its_statistics(
    freeze: str, stays: bool
) -> None:
    """And computes with them, in training as in service."""
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    treat(model, OptimizerSettings(name="sgd", freeze=(freeze,)))
    before = copy.deepcopy(model[1].state_dict())
    model.eval()
    model.train()
    assert model.training and model[1].training is not stays
    model(torch.randn(8, 6))
    assert torch.equal(model[1].running_mean, before["running_mean"]) is stays
    assert (running_statistics(model) == []) is stays  # nothing that workers would average
