"""The tasks' table: what can be asked of data."""

from modelyard.spec.plugins import Plugin, load, table
from modelyard.spec.records import TaskSpec
from modelyard.tasks.base import Task
from modelyard.tasks.own_loss import OwnLoss

BUILT_IN = {
    "classification": Plugin(
        "modelyard.tasks.classification:Classification", "one of several classes"
    ),
    "regression": Plugin("modelyard.tasks.regression:Regression", "a number"),
}


def names() -> list[str]:
    return sorted(table("tasks", BUILT_IN))


def open_task(spec: TaskSpec, own_loss: OwnLoss | None = None) -> Task:
    """The task that ``spec`` describes. Raises UsageError for an unknown type.

    ``own_loss`` is what ``spec.loss`` names where that is the user's: only training needs it.
    """
    task: Task = load("tasks", spec.type, BUILT_IN)(spec)
    task.own_loss = own_loss
    return task
