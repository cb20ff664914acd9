"""What the framework of a model will import in each worker, found without importing any of it."""

from pathlib import Path

from modelyard.backends import BUILT_IN_MODELS, OWNS
from modelyard.backends.imports import imported_names
from modelyard.backends.source import code_files
from modelyard.spec.errors import ModelError

_OF_BACKEND = {
    # The first step of an optimizer imports dynamo, which takes as long as torch itself.
    "pytorch": ("modelyard.backends.pytorch", "modelyard.backends.pytorch_models", "torch._dynamo"),
}


def preload(root: Path, build: str) -> tuple[str, ...]:
    """Names of modules, those of the frameworks that the model's code names.

    Only modules that start no thread and open no device are listed: workers may be forked from them.
    """
    if build in BUILT_IN_MODELS:
        backends = {BUILT_IN_MODELS[build]}
    else:
        backends = _backends_in_code(root.resolve(), build)
    return tuple(name for key in sorted(backends) for name in _OF_BACKEND.get(key, ()))


def _backends_in_code(root: Path, build: str) -> set[str]:
    try:
        files = code_files(root, build).values()
    except ModelError:
        return set()  # the worker says it, with the mend
    names = {name.partition(".")[0] for file in files for name in imported_names(root, file)}
    return {OWNS[name] for name in names if name in OWNS}
