"""What a run is made of: named, flat inputs whose digest is its id."""

import hashlib
import json
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from modelyard import __version__
from modelyard.backends import BUILT_IN_MODELS, OWNS
from modelyard.backends.source import code_digest
from modelyard.spec.losses import own_functions
from modelyard.spec.project import Project
from modelyard.spec.records import Dataset
from modelyard.training.start_weights import find_start

_NO_INPUT = {
    "engine",
    "device",
    "keep",
    "keep_best",
    "checkpoint_seconds",
    "max_restarts",
    "max_skips",
    "profile",
    "hang_seconds",
    "max_time",
    "max_steps",
    "max_cost",
    "price_per_worker_hour",
}
"""Fields of ``[train]`` that change where, how safely and how far it runs, not what a step does."""


def inputs_of(project: Project, dataset: Dataset | str, code: str) -> dict[str, str]:
    """Everything that decides what a training gives; ``dataset`` is one or its id, ``code`` a digest."""
    start = find_start(project)
    train = project.train.model_dump(mode="json", exclude=_NO_INPUT)
    sections = {
        "task": project.task.model_dump(mode="json"),
        # Of the weights, what they are counts, and not where they lie.
        "model": project.model.model_dump(mode="json", exclude={"weights"}),
        "train": train,
    }
    return {
        "project": project.name,
        "data": dataset if isinstance(dataset, str) else dataset.id,
        "code": code,
        **({"weights": start.digest} if start else {}),
        **dict(_flat("", sections)),
        "version.modelyard": __version__,
        "version.python": ".".join(platform.python_version_tuple()[:2]),
        **_framework_versions(project.model.full_name),
    }


def code_of(project: Project) -> str:
    """Digest of the user's code that shapes the training: the model's, the loss's, the metrics'. Raises ModelError."""
    return code_digest(project.root, project.model.full_name, *own_functions(project.task))


def is_input(field: str) -> bool:
    """False for a dotted field that cannot change what a training gives."""
    section, _, name = field.partition(".")
    if section == "task":  # another type would be other data
        return name not in ("type", "metrics", "lower_is_better")
    return section == "model" or (section == "train" and name not in _NO_INPUT)


def run_id(inputs: dict[str, str]) -> str:
    """The project's name and ten hex digits of the digest of all inputs."""
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False)
    return f"{inputs['project']}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def _flat(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(f"{name}.", value)
        else:
            yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _framework_versions(build: str) -> dict[str, str]:
    """Of the framework that trains; of all that are installed where only the user's code knows which."""
    backend = BUILT_IN_MODELS.get(build)
    packages = sorted(name for name, owner in OWNS.items() if backend in (None, owner))
    found = {}
    for package in packages:
        try:
            found[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return found
