"""Mistakes of ``[task]`` that no single field can know, with their places in the project file."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modelyard.spec.errors import Mistake, nearest
from modelyard.spec.losses import is_own
from modelyard.spec.task import faults


def task_mistakes(
    get: Callable[..., Any], mistake: Callable[..., Mistake], root: Path
) -> Iterator[Mistake]:
    """Fields that do not fit together, and functions whose file is not there.

    ``get`` and ``mistake`` are those of the content that was read; ``root`` is the project's folder.
    """
    task = get("task", {})
    if not isinstance(task, dict):
        return
    for field, problem, expected, suggestion in faults(task):
        yield mistake(("task", field), problem, expected, suggestion)
    metrics = task.get("metrics", [])
    named = [("loss", task.get("loss"))]
    named += [("metrics", metric) for metric in (metrics if isinstance(metrics, list) else [])]
    for field, value in named:
        if not isinstance(value, str) or not is_own(value):
            continue
        module, _, function = value.partition(":")
        file = root / Path(*module.split("."))
        if module and not file.with_suffix(".py").exists() and not (file / "__init__.py").exists():
            files = [f"{entry.stem}:{function}" for entry in root.glob("*.py")]
            yield mistake(
                ("task", field),
                f"there is no {module.replace('.', '/')}.py in {root}",
                "",
                nearest(value, files),
            )
