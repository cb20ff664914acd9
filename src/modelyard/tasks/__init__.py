"""The tasks' table: what can be asked of data."""

from modelyard.spec.plugins import Plugin, load, table
from modelyard.spec.records import TaskSpec
from modelyard.tasks.base import Task

BUILT_IN = {
    "classification": Plugin(
        "modelyard.tasks.classification:Classification", "one of several classes"
    ),
    "regression": Plugin("modelyard.tasks.regression:Regression", "a number"),
}


def names() -> list[str]:
    return sorted(table("tasks", BUILT_IN))


def open_task(spec: TaskSpec) -> Task:
    """The task that ``spec`` describes. Raises UsageError for an unknown type."""
    task: Task = load("tasks", spec.type, BUILT_IN)(spec)
    return task
