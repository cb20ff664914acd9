"""The optimizer's step by its kernels alone is, bit for bit, the step of torch's own ``step``."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from modelyard.backends.base import OptimizerSettings
from modelyard.backends.pytorch_optimizer import Update, make_optimizer

NAMES = ["sgd", "adam", "adamw"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))


def make(model: nn.Module, name: str) -> torch.optim.Optimizer:
    return make_optimizer(tuple(model.parameters()), OptimizerSettings(name=name, weight_decay=0.1))


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


@pytest.mark.parametrize("name", ["adam", "adamw"])
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
