"""A training on trial: the project's own workers in a scratch store, left when enough was seen; nothing of it stays."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelyard.spec.project import Project
from modelyard.spec.records import AnyEvent, Dataset
from modelyard.store import Store, open_store
from modelyard.training.order import Proving
from modelyard.training.train import train

_LIMITLESS = {"engine": "local", "max_time": None, "max_cost": None, "max_steps": None}


class Enough(Exception):
    """An observer raises it to leave."""


def try_training(
    project: Project,
    dataset: Dataset,
    store: Store,
    observer: Callable[[AnyEvent], None],
    *,
    proving: Proving,
    **fields: Any,
) -> None:
    """Train until the end, or until ``observer`` raises ``Enough``; without budgets and profile, and with ``fields``.

    Raises whatever YardError ended a worker.
    """
    section = project.train.model_copy(update={**_LIMITLESS, "profile": False, **fields})
    scratch = Path(tempfile.mkdtemp(prefix=".trial-", dir=store.root))
    try:
        with contextlib.suppress(Enough):
            train(
                project.model_copy(update={"train": section}),
                dataset,
                open_store(scratch),
                observers=[observer],
                proving=proving,
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
