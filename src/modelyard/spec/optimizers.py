"""The optimizers that a project can name: which fields each understands, and what these are where nothing is said."""

from typing import Any

import msgspec


class Optimizer(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer. A field that is neither in ``defaults`` nor in ``FOR_ALL`` means nothing to it."""

    defaults: dict[str, Any]
    """Field of ``[train.optimizer]`` to its value where none is given: PyTorch's, of Lion the paper's."""
    weight_decay: float = 0.0
    """Where none is given."""
    decoupled: bool = False
    """Decay takes ``lr * weight_decay`` off a weight, beside the gradient and not by way of it."""


OPTIMIZERS = {
    # Sutskever, Martens, Dahl & Hinton, On the importance of initialization and momentum, ICML 2013.
    "sgd": Optimizer(defaults={"momentum": 0.9, "nesterov": False}, weight_decay=0.01),
    # Kingma & Ba, Adam: A Method for Stochastic Optimization, ICLR 2015.
    "adam": Optimizer(defaults={"betas": (0.9, 0.999), "epsilon": 1e-8}),
    # Loshchilov & Hutter, Decoupled Weight Decay Regularization, ICLR 2019.
    "adamw": Optimizer(
        defaults={"betas": (0.9, 0.999), "epsilon": 1e-8}, weight_decay=0.01, decoupled=True
    ),
    # Tieleman & Hinton, Lecture 6.5 of Neural Networks for Machine Learning, Coursera 2012.
    "rmsprop": Optimizer(defaults={"rho": 0.99, "epsilon": 1e-8, "momentum": 0.0}),
    # Duchi, Hazan & Singer, Adaptive Subgradient Methods, JMLR 12 (2011).
    "adagrad": Optimizer(defaults={"epsilon": 1e-10}),
    # Chen et al., Symbolic Discovery of Optimization Algorithms, NeurIPS 2023, algorithm 2.
    "lion": Optimizer(defaults={"betas": (0.9, 0.99)}, weight_decay=0.01, decoupled=True),
}
NEUTRAL: dict[str, Any] = {
    "momentum": 0.0,
    "nesterov": False,
    "betas": (0.9, 0.999),
    "epsilon": 1e-8,
    "rho": 0.99,
}
"""Every field that only some understand, with a value for those that do not look at it."""


def default_of(name: str, field: str) -> Any:
    """The value of ``field`` where a project gives none; also of an optimizer that is not known here."""
    known = OPTIMIZERS.get(name)
    return NEUTRAL[field] if known is None else known.defaults.get(field, NEUTRAL[field])


def names_with(field: str) -> list[str]:
    """The optimizers that understand ``field``."""
    return [name for name, optimizer in OPTIMIZERS.items() if field in optimizer.defaults]
