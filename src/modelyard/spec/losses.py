"""The losses by name, and which of the functions that a task names are the user's own."""

from typing import Protocol

LOSSES = {
    "classification": ("cross-entropy", "binary-cross-entropy", "focal", "binary-focal"),
    "regression": ("mean-squared-error", "mean-absolute-error", "huber"),
}
"""The losses of each task; ``auto`` is the first."""
BINARY = frozenset({"binary-cross-entropy", "binary-focal"})
"""Losses of two classes on one output."""
FOCAL = frozenset({"focal", "binary-focal"})


class Asking(Protocol):
    """A ``TaskSection`` or a ``TaskSpec``."""

    @property
    def loss(self) -> str: ...
    @property
    def metrics(self) -> "list[str] | tuple[str, ...]": ...


def is_own(loss: str) -> bool:
    """Whether it is the user's: ``module:function``."""
    return ":" in loss


def own_functions(task: Asking) -> tuple[str, ...]:
    """The user's functions that ``task`` names, loss first: their code shapes a training too."""
    return (*((task.loss,) if is_own(task.loss) else ()), *task.metrics)


def metric_name(metric: str) -> str:
    """``module:function`` → ``function``."""
    return metric.rpartition(":")[2]
