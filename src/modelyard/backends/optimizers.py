"""What the backends' optimizers have in common: which there are, and what each keeps of a weight."""

from collections.abc import Collection

from modelyard.backends.base import OptimizerSettings
from modelyard.spec.errors import TrainingError, did_you_mean
from modelyard.spec.optimizers import OPTIMIZERS


def check_name(settings: OptimizerSettings, backend: str, known: Collection[str] = ()) -> None:
    """Raises TrainingError for an optimizer that is not among ``known``, or among all there are."""
    names = known or OPTIMIZERS
    if settings.name not in names:
        hint = did_you_mean(settings.name, names)
        raise TrainingError(
            f"the {backend} backend has no optimizer {settings.name!r}{hint}",
            f"use {', '.join(names)}",
        )


def quantities(settings: OptimizerSettings) -> tuple[str, ...]:
    """Names of the arrays of a weight's shape that are kept from step to step: PyTorch's names."""
    moving = ("momentum_buffer",) if settings.momentum else ()
    kept = {
        "sgd": moving,
        "rmsprop": ("square_avg", *moving),
        "adagrad": ("sum",),
        "lion": ("exp_avg",),
    }
    return kept.get(settings.name, ("exp_avg", "exp_avg_sq"))


def is_decoupled(settings: OptimizerSettings) -> bool:
    """Whether decay acts beside the gradient and not by way of it."""
    return OPTIMIZERS[settings.name].decoupled
