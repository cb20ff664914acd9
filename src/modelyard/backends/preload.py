"""What the framework of a model will import in each worker, found without importing any of it."""

import os
from pathlib import Path

from modelyard.backends import BUILT_IN_MODELS, OWNS
from modelyard.backends.imports import imported_names
from modelyard.backends.source import code_files
from modelyard.spec.errors import ModelError

_OF_BACKEND = {
    # The first step of an optimizer imports dynamo, which takes as long as torch itself.
    "pytorch": ("modelyard.backends.pytorch", "torch._dynamo"),
    "keras": ("modelyard.backends.keras",),
    # Its threads come with its first computation, not with its import.
    "jax": ("modelyard.backends.jax", "flax.nnx"),
}
_KERAS_BACKEND = "KERAS_BACKEND"
"""What Keras stands on; a model's code that sets it must do so before Keras is imported."""


def preload(root: Path, build: str) -> tuple[str, ...]:
    """Names of modules, those of the frameworks that the model's code names.

    Only modules that start no thread and open no device are listed: workers may be forked from them.
    """
    if build in BUILT_IN_MODELS:
        backends = {BUILT_IN_MODELS[build]}
    else:
        backends = _backends_in_code(root.resolve(), build)
    return tuple(name for key in sorted(backends) for name in of_backend(key))


def of_backend(backend: str) -> tuple[str, ...]:
    """The same for one backend; nothing for one of another package, which may not bear a fork."""
    below = _below_keras() if backend == "keras" else ()
    return (*_OF_BACKEND.get(backend, ()), *below)


def _below_keras() -> tuple[str, ...]:
    """TensorFlow may be forked before its first operation; JAX starts threads, so that it comes later."""
    return ("modelyard.backends.keras_tensorflow",) if _stands_on() == "tensorflow" else ()


def _stands_on() -> str:
    return os.environ.get(_KERAS_BACKEND) or "tensorflow"


def backend_in_code(root: Path, build: str) -> str:
    """The backend of the one framework that the model's code names; empty where it names none or several.

    It spares a worker to build the model only to see whose it is.
    """
    if build in BUILT_IN_MODELS:
        return BUILT_IN_MODELS[build]
    found = _backends_in_code(root.resolve(), build)
    return found.pop() if len(found) == 1 else ""


def _backends_in_code(root: Path, build: str) -> set[str]:
    try:
        files = code_files(root, build).values()
    except ModelError:
        return set()  # the worker says it, with the mend
    if any(_KERAS_BACKEND in file.read_text(errors="replace") for file in files):
        return set()
    names = {name.partition(".")[0] for file in files for name in imported_names(root, file)}
    return {OWNS[name] for name in names if name in OWNS}
