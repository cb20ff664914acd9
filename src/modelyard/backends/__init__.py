"""The backends' table, and how a framework is recognised from a model without importing it."""

from modelyard.backends.families import full_names
from modelyard.spec.errors import ModelError
from modelyard.spec.plugins import Plugin, load

BUILT_IN = {
    "pytorch": Plugin(
        "modelyard.backends.pytorch:PyTorch", "PyTorch: DDP over gloo or nccl", "pytorch"
    ),
    "keras": Plugin(
        "modelyard.backends.keras:Keras", "Keras 3 on TensorFlow, JAX or PyTorch", "keras"
    ),
    "jax": Plugin(
        "modelyard.backends.jax:Jax", "JAX: Flax NNX modules or plain functions, compiled", "jax"
    ),
}
OWNS = {"torch": "pytorch", "keras": "keras", "jax": "jax", "flax": "jax"}
"""Top-level package of a base class to the backend that trains it."""
EXTRAS = {**OWNS, "tensorflow": "keras", "optax": "jax"}
"""Top-level package that a user's code may import to the pip extra that brings it."""
BUILT_IN_MODELS = full_names()
"""Model names a project may use instead of ``module:function``, and the backend that builds them."""


def recognise(model: object) -> str:
    """Name of the backend for ``model``, from the classes it descends from, nearest first.

    A class may name its backend itself, as ``modelyard_backend``, and so can one of another package.
    Two plain functions, ``(init, apply)``, are JAX's way of writing a model without a library.
    Raises ModelError where no base class belongs to a known framework.
    """
    if named := getattr(type(model), "modelyard_backend", ""):
        return str(named)
    if isinstance(model, tuple) and len(model) == 2 and all(callable(part) for part in model):
        return "jax"
    for base in type(model).__mro__:
        if backend := OWNS.get(base.__module__.partition(".")[0]):
            return backend
    raise ModelError(
        f"the model's function returned {type(model).__module__}.{type(model).__qualname__}, which no backend knows",
        f"return a model of: {', '.join(sorted(set(OWNS)))}",
    )


def open_backend(name: str) -> "Backend":
    """Raises UsageError for an unknown name, MissingExtraError where the framework is not installed."""
    backend: Backend = load("backends", name, BUILT_IN)()
    return backend


from modelyard.backends.base import Backend  # noqa: E402
