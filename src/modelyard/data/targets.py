"""What is to be predicted: the task's classes or values, found in the targets as they stand."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.data.sources.base import natural_order
from modelyard.spec.errors import DataError, UsageError
from modelyard.spec.project import Project
from modelyard.spec.records import TaskSpec
from modelyard.tasks import open_task

LOSSES = {
    "classification": ("cross-entropy", "binary-cross-entropy"),
    "regression": ("mean-squared-error",),
}
"""The losses of each task; ``auto`` is the first."""
MAX_CLASSES = 1000
MIN_SAMPLES = 3
"""Of each class: one for each split."""

Namer = Callable[[int], str]


def check_task(project: Project) -> str:
    """The loss, with ``auto`` resolved. Raises UsageError where task and loss do not fit."""
    kind, loss = project.task.type, project.task.loss
    if kind not in LOSSES:
        # A third party's task: its own constructor judges the loss.
        open_task(TaskSpec(type=kind, target=project.data.target, loss=loss))
        return loss
    if loss == "auto":
        return LOSSES[kind][0]
    if loss not in LOSSES[kind]:
        raise UsageError(
            f"task.loss = {loss!r} does not fit task.type = {kind!r}",
            f'set task.loss = "auto", or one of {", ".join(LOSSES[kind])}',
        )
    return loss


def labelled_rows(
    targets: NDArray[Any], column: str, name: Namer, missing: str
) -> NDArray[np.int64]:
    """Rows that have a label. Where some have none: DataError naming them, unless ``missing`` is ``drop``."""
    absent = np.flatnonzero([target is None for target in targets])
    if len(absent) and missing != "drop":
        places = ", ".join(name(int(row)) for row in absent[:5]) + (" …" if len(absent) > 5 else "")
        raise DataError(
            f"{len(absent)} row{'s have' if len(absent) > 1 else ' has'} no label in {column!r}: {places}",
            'fill the cells, delete the rows, or set data.missing_target = "drop"',
        )
    kept = np.flatnonzero([target is not None for target in targets])
    if not len(kept):
        raise DataError(f"no row has a label in {column!r}", "look at data.target")
    return kept


def make_task(
    project: Project, loss: str, targets: NDArray[Any], name: Namer
) -> tuple[TaskSpec, NDArray[Any]]:
    """The task with its classes, and the encoded targets: int64 or float32 (n,).

    ``targets`` (n,) has no missing ones; ``name`` tells where target i stands. Raises DataError.
    """
    spec = TaskSpec(type=project.task.type, target=project.data.target, loss=loss)
    values: Sequence[Any] = targets.tolist()
    if spec.type == "classification":
        labels = [class_name(value) for value in values]
        classes = _classes(labels, tabular=project.data.source != "images")
        spec = TaskSpec(type=spec.type, target=spec.target, loss=loss, classes=classes)
        return spec, open_task(spec).encode(labels)
    _check_numbers(values, name)
    return spec, open_task(spec).encode(values)


def class_name(value: Any) -> str:
    """A label as text; 1.0 is the class ``1``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def truth_text(spec: TaskSpec, target: Any) -> str:
    """An encoded target as people write it."""
    return spec.classes[int(target)] if spec.classes else f"{float(target):g}"


def _classes(labels: Sequence[str], *, tabular: bool) -> tuple[str, ...]:
    counts = Counter(labels)
    if len(counts) == 1:
        raise DataError(
            f"all samples have the same label {labels[0]!r}; a classification needs two classes or more",
            "add samples of another class, or look at data.target",
        )
    if tabular and len(counts) > MAX_CLASSES:
        number_like = all(_is_number(label) for label in counts)
        raise DataError(
            f"the target has {len(counts)} different values, more than {MAX_CLASSES} classes"
            + (", all of them numbers" if number_like else ""),
            'set task.type = "regression"' if number_like else "look at data.target",
        )
    small = sorted((name for name in counts if counts[name] < MIN_SAMPLES), key=natural_order)
    if small:
        named = ", ".join(f"{name!r} ({counts[name]})" for name in small[:5])
        number_like = all(_is_number(label) for label in counts)
        raise DataError(
            f"too few samples to split: {named}{' …' if len(small) > 5 else ''}; "
            f"each class needs at least {MIN_SAMPLES}",
            "add samples, or take the class out of the data"
            + (
                ', or set task.type = "regression" where the target is a measured number'
                if number_like and len(counts) > 20
                else ""
            ),
        )
    return tuple(sorted(counts, key=natural_order))


def _check_numbers(values: Sequence[Any], name: Namer) -> None:
    bad = [row for row, value in enumerate(values) if not _is_number(value)]
    if bad:
        shown = ", ".join(f"{name(row)} {values[row]!r}" for row in bad[:5])
        raise DataError(
            f"the target of a regression must be a finite number: {shown}{' …' if len(bad) > 5 else ''}",
            'mend the target, or set task.type = "classification"',
        )
    if len(values) < MIN_SAMPLES:
        raise DataError(
            f"{len(values)} samples are too few to split", f"give at least {MIN_SAMPLES}"
        )


def _is_number(value: Any) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError, OverflowError):
        return False
