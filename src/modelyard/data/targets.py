"""What is to be predicted: the task's classes or values, found in the targets as they stand."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.data.sources.base import natural_order
from modelyard.spec.errors import DataError, UsageError, did_you_mean
from modelyard.spec.losses import LOSSES
from modelyard.spec.project import Project
from modelyard.spec.records import TaskSpec
from modelyard.spec.task import faults
from modelyard.tasks import open_task

MAX_CLASSES = 1000
MIN_SAMPLES = 3
"""Of each class: one for each split."""

Namer = Callable[[int], str]


def check_task(project: Project) -> str:
    """The loss, with ``auto`` resolved. Raises UsageError where the fields of ``[task]`` do not fit."""
    task = project.task
    for field, problem, expected, suggestion in faults(task.model_dump()):
        hint = f"; did you mean {suggestion!r}?" if suggestion else ""
        raise UsageError(f"task.{field}: {problem}{hint}", f"use {expected}")
    if task.type not in LOSSES:
        # A third party's task: its own constructor judges the loss.
        open_task(TaskSpec(type=task.type, target=project.data.target, loss=task.loss))
        return task.loss
    return LOSSES[task.type][0] if task.loss == "auto" else task.loss


def asked_task(
    project: Project, target: str, classes: Sequence[str], counts: Sequence[int] | None = None
) -> TaskSpec:
    """The task as the project asks it today, of data with these ``classes``.

    ``counts`` are the training split's samples of each class; without them "balanced" weights are left
    out. Raises UsageError, and DataError where something does not fit the classes.
    """
    task = project.task
    spec = TaskSpec(
        type=task.type,
        target=target,
        loss=check_task(project),
        classes=tuple(classes),
        label_smoothing=task.label_smoothing,
        focal_gamma=task.focal_gamma,
        huber_delta=task.huber_delta,
        class_weights=_class_weights(task.class_weights, classes, counts),
        metrics=tuple(task.metrics),
        lower_is_better=tuple(task.lower_is_better),
    )
    open_task(spec)  # judges what only it can know
    return spec


def _class_weights(
    asked: str | Mapping[str, float], classes: Sequence[str], counts: Sequence[int] | None
) -> tuple[float, ...]:
    """One a class, or none. Balanced: n / (k n_c), whose mean over the n samples of k classes is 1.

    King & Zeng 2001, *Logistic Regression in Rare Events Data*, section 4.2, with every class as frequent.
    """
    if isinstance(asked, str):
        if asked != "balanced" or counts is None:
            return ()
        present = sum(count > 0 for count in counts)
        return tuple(sum(counts) / (present * count) if count else 0.0 for count in counts)
    for name in asked:
        if name not in classes:
            hint = did_you_mean(name, classes)
            raise DataError(
                f"task.class_weights: {name!r} is not one of the classes{hint}",
                f"the classes are {', '.join(classes)}",
            )
    if asked and not any(asked.get(name, 1.0) for name in classes):
        raise DataError("task.class_weights: every class counts nothing", "give one of them more")
    return tuple(asked.get(name, 1.0) for name in classes) if asked else ()


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
    project: Project, targets: NDArray[Any], name: Namer
) -> tuple[TaskSpec, NDArray[Any]]:
    """The task with its classes, and the encoded targets: int64 or float32 (n,).

    ``targets`` (n,) has no missing ones; ``name`` tells where target i stands. Raises DataError.
    """
    kind, column = project.task.type, project.data.target
    values: Sequence[Any] = targets.tolist()
    if kind == "classification":
        labels = [class_name(value) for value in values]
        classes = _classes(labels, tabular=project.data.source != "images")
        spec = asked_task(project, column, classes)
        return spec, open_task(spec).encode(labels)
    _check_numbers(values, name)
    spec = asked_task(project, column, ())
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
