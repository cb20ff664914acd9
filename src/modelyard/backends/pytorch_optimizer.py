"""PyTorch's optimizers as the project file asks for them, as few kernels as there are."""

from collections.abc import Callable, Mapping
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
    """One step of the optimizer; of Adam and AdamW by calling the fused kernels themselves.

    ``Optimizer.step`` looks through all its options and sorts all tensors anew each time, which takes
    longer than the arithmetic of a small model. What it finds is the same in every step: it is
    collected once, and the same kernels get the same tensors. Where anything is out of the ordinary
    (the first step, a parameter without a gradient, sharded weights) ``Optimizer.step`` does it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._kernel = _KERNELS.get(type(optimizer))
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if any(hasattr(parameter, "to_local") for parameter in self._parameters):
            self._kernel = None
        self._groups: list[_Group] = []
        self._steps: list[torch.Tensor] = []
        """Of all parameters: how many steps each has had."""

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
        state, kernel = self._optimizer.state, self._kernel
        if kernel is not None and all("step" in state[p] for p in self._parameters):
            self._groups = [
                _Group(kernel, options, state) for options in self._optimizer.param_groups
            ]
            self._steps = [state[p]["step"] for p in self._parameters]


class _Group:
    """The tensors of one parameter group, as the kernel takes them."""

    def __init__(self, kernel: Callable[..., None], options: dict[str, Any], state: Any) -> None:
        self._parameters: list[nn.Parameter] = options["params"]
        self._firsts = [state[p]["exp_avg"] for p in self._parameters]
        self._seconds = [state[p]["exp_avg_sq"] for p in self._parameters]
        self._steps = [state[p]["step"] for p in self._parameters]
        self._kernel, self._scale = kernel, options["scale"]
        beta1, beta2 = options["betas"]
        self._options = {"beta1": beta1, "beta2": beta2, "eps": options["eps"]}
        self._options |= {key: options[key] for key in ("weight_decay", "amsgrad", "maximize")}

    def step(self, rate: float) -> None:
        gradients = [p.grad for p in self._parameters]
        held = (self._parameters, gradients, self._firsts, self._seconds)
        self._kernel(*held, [], self._steps, lr=rate * self._scale, **self._options)


_KERNELS: dict[type, Callable[..., None]] = {
    kind: getattr(torch, kernel)
    for kind, kernel in ((torch.optim.Adam, "_fused_adam_"), (torch.optim.AdamW, "_fused_adamw_"))
    if hasattr(torch, kernel)
}
"""Of another release of torch they may be gone; then ``Optimizer.step`` does every step."""
