"""PyTorch's optimizers as the project file asks for them, as few kernels as there are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from modelyard.backends.base import OptimizerSettings
from modelyard.backends.optimizers import check_name
from modelyard.backends.parameter_rules import Treatment, nothing_to_train, treatments
from modelyard.backends.pytorch_lion import Lion


def treat(model: nn.Module, settings: OptimizerSettings) -> dict[str, Treatment]:
    """Freeze what ``settings`` want frozen; what to do with the others, by name.

    A batch norm that they freeze as a whole computes as in service, and its running statistics stay too.
    Raises TrainingError for a pattern that matches nothing, ModelError where nothing is left to train.
    """
    named = dict(model.named_parameters())
    treated = treatments({name: p.ndim for name, p in named.items()}, settings)
    for name, parameter in named.items():
        if not treated[name].trained:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise nothing_to_train("none of its parameters requires a gradient")
    frozen = {id(p) for name, p in named.items() if not treated[name].trained}
    for module in model.modules():
        own = {id(parameter) for parameter in module.parameters(recurse=False)}
        if isinstance(module, nn.modules.batchnorm._NormBase) and own and own <= frozen:
            module.__dict__["train"] = partial(_stay, module)
    return treated


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001
    """In place of ``module.train``: as in service, also when the model goes back to training."""
    module.training = False
    return module


def make_optimizer(
    model: nn.Module, settings: OptimizerSettings, treated: Mapping[str, Treatment]
) -> torch.optim.Optimizer:
    """Of the parameters that are trained, those that are treated alike in one group.

    Raises TrainingError for an optimizer that is not there.
    """
    check_name(settings, "pytorch")
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for name, parameter in trained:
        members.setdefault((treated[name].scale, treated[name].decay), []).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay, "scale": scale}
        for (scale, decay), parameters in members.items()
    ]
    # These fused kernels do not know sharded weights.
    whole = not any(hasattr(parameter, "to_local") for _, parameter in trained)
    fused: dict[str, bool] = {"fused": True} if whole else {"foreach": True}
    betas, epsilon = settings.betas, settings.epsilon
    momentum, nesterov = settings.momentum, settings.nesterov
    match settings.name:
        case "sgd":
            return torch.optim.SGD(
                groups, lr=0.0, momentum=momentum, nesterov=nesterov and momentum > 0, **fused
            )
        case "adam":
            return torch.optim.Adam(groups, lr=0.0, betas=betas, eps=epsilon, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(
                groups, lr=0.0, alpha=settings.rho, eps=epsilon, momentum=momentum, foreach=True
            )
        case "adagrad":
            return torch.optim.Adagrad(groups, lr=0.0, eps=epsilon, **fused)
        case "lion":
            return Lion(groups, lr=0.0, betas=betas)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=epsilon, fused=True)


class Update:
    """One step of the optimizer; where there is a fused kernel, by calling that itself.

    ``Optimizer.step`` looks through all its options and sorts all tensors anew each time, which takes
    longer than the arithmetic of a small model. What it finds is the same in every step: it is
    collected once, and the same kernels get the same tensors. Where anything is out of the ordinary
    (the first step, a parameter without a gradient, sharded weights) ``Optimizer.step`` does it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._fused = _FUSED.get(type(optimizer))
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        alike = len({(p.dtype, p.device) for p in self._parameters}) == 1
        if not alike or any(hasattr(parameter, "to_local") for parameter in self._parameters):
            self._fused = None
        self._groups: list[_Group] = []
        self._steps: list[torch.Tensor] = []
        """Of all parameters: how many steps each has had, where an optimizer counts them."""

    def forget(self) -> None:
        """The optimizer's state was replaced: look again."""
        self._groups = []

    def set_rate(self, rate: float) -> None:
        """For a step by ``Optimizer.step``."""
        for options in self._optimizer.param_groups:
            options["lr"] = rate * options["scale"]

    def __call__(self, rate: float) -> None:
        """Take the step, and drop the gradients."""
        if self._groups and all(p.grad is not None for p in self._parameters):
            with torch.no_grad():
                if self._steps:
                    torch._foreach_add_(self._steps, 1)
                for group in self._groups:
                    group.step(rate)
        else:
            self.set_rate(rate)
            self._optimizer.step()
            self._collect()
        for parameter in self._parameters:
            parameter.grad = None

    def _collect(self) -> None:
        if self._fused is None:
            return
        states = [self._optimizer.state.get(p, {}) for p in self._parameters]
        still = not self._optimizer.param_groups[0].get("momentum")
        kept = [q for q in self._fused.kept if q and not (still and q == _BUFFER)]
        if all(state.get(quantity) is not None for state in states for quantity in kept):
            state = self._optimizer.state
            groups = self._optimizer.param_groups
            self._groups = [_Group(self._fused, kept, options, state) for options in groups]
            self._steps = [state["step"] for state in states] if "step" in kept else []


@dataclass(frozen=True)
class _Fused:
    """A kernel of torch's, and what it is given after parameters and gradients."""

    kernel: Callable[..., None]
    kept: tuple[str, ...]
    """Quantities of the optimizer's state, in the kernel's order; "" for an empty list."""
    options: tuple[str, ...]
    """Of a group, by the kernel's names for them."""


class _Group:
    """The tensors of one parameter group, as the kernel takes them."""

    def __init__(
        self, fused: _Fused, kept: Sequence[str], options: dict[str, Any], state: Any
    ) -> None:
        self._kernel, self._scale = fused.kernel, options["scale"]
        self._parameters: list[nn.Parameter] = options["params"]
        self._held = [
            [state[p][quantity] for p in self._parameters] if quantity in kept else []
            for quantity in fused.kept
        ]
        given = dict(options)
        if "betas" in options:
            given["beta1"], given["beta2"] = options["betas"]
        self._options = {name: given.get(name, False) for name in fused.options}

    def step(self, rate: float) -> None:
        gradients = [p.grad for p in self._parameters]
        lr = rate * self._scale
        self._kernel(self._parameters, gradients, *self._held, lr=lr, **self._options)


_BUFFER = "momentum_buffer"
_OF_ADAM = (
    ("exp_avg", "exp_avg_sq", "", "step"),
    ("beta1", "beta2", "eps", "weight_decay", "amsgrad", "maximize"),
)
_FUSED: dict[type, _Fused] = {
    kind: _Fused(getattr(torch, kernel), *rest)
    for kind, kernel, *rest in (
        (torch.optim.Adam, "_fused_adam_", *_OF_ADAM),
        (torch.optim.AdamW, "_fused_adamw_", *_OF_ADAM),
        (
            torch.optim.SGD,
            "_fused_sgd_",
            (_BUFFER,),
            # That it were the first step nobody says: there are buffers by now.
            ("weight_decay", "momentum", "dampening", "nesterov", "maximize", "is_first_step"),
        ),
        (
            torch.optim.Adagrad,
            "_fused_adagrad_",
            ("sum", "step"),
            ("lr_decay", "weight_decay", "eps", "maximize"),
        ),
    )
    if hasattr(torch, kernel)
}
"""Of another release of torch they may be gone; then ``Optimizer.step`` does every step."""
