"""A JAX training state as named arrays, and back: no pickle, no position numbers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from modelyard.backends.base import Snapshot
from modelyard.backends.jax_model import Arrays, Functional
from modelyard.backends.jax_update import State
from modelyard.backends.snapshots import check_fit
from modelyard.spec.errors import ModelError

_NEW_RUN = "the model has changed since the checkpoint: start a new run"


def snapshot_of(
    model: Functional, parameters: Arrays, kept: Arrays, state: State, optimizer: str
) -> Snapshot:
    """``model.<name>``, ``optimizer.<parameter>.<quantity>``, ``optimizer.step``: memory of JAX's own."""
    found = dict(_named(model, parameters, kept))
    for quantity, arrays in state.items():
        if quantity == "step":
            found["optimizer.step"] = arrays
        else:
            found |= {
                f"optimizer.{name}.{quantity}": array
                for name, array in zip(model.trained_names, arrays, strict=True)
            }
    return Snapshot(
        tensors={name: _array(name, array) for name, array in found.items()},
        numbers={"optimizer": optimizer},
    )


def restored(
    model: Functional, state: State, optimizer: str, snapshot: Snapshot
) -> tuple[Arrays, Arrays, State]:
    """New parameters, kept arrays and optimizer state out of the whole tensors of ``snapshot``.

    Weights alone leave the optimizer as it is. Raises ModelError naming what does not fit.
    """
    given = snapshot.tensors
    own = dict(_named(model, model.parameters, model.kept))
    check_fit(
        {name.removeprefix("model."): tuple(array.shape) for name, array in own.items()},
        {k.removeprefix("model."): v for k, v in given.items() if k.startswith("model.")},
        "weights",
    )
    parameters = [
        _taken(given[f"model.{n}"], a) for n, a in zip(model.names, model.parameters, strict=True)
    ]
    kept_own = model.kept[: len(model.kept) - model.fixed]
    kept = [_taken(given[f"model.{n}"], a) for n, a in zip(model.kept_names, kept_own, strict=True)]
    if not any(name.startswith("optimizer.") for name in given):
        return parameters, kept, state
    taken = snapshot.numbers.get("optimizer", optimizer)
    if taken != optimizer:
        raise ModelError(
            f"the snapshot was made with the optimizer {taken!r}, this training uses {optimizer!r}",
            "start a new run",
        )
    fresh: State = {}
    for quantity, arrays in state.items():
        if quantity == "step":
            fresh[quantity] = _taken(_wanted(given, "optimizer.step", ()), arrays)
            continue
        fresh[quantity] = [
            _taken(_wanted(given, f"optimizer.{name}.{quantity}", array.shape), array)
            for name, array in zip(model.trained_names, arrays, strict=True)
        ]
    return parameters, kept, fresh


def _named(model: Functional, parameters: Arrays, kept: Arrays) -> list[tuple[str, jax.Array]]:
    names: Sequence[str] = (*model.names, *model.kept_names)
    own = kept[: len(kept) - model.fixed]
    return [(f"model.{n}", a) for n, a in zip(names, [*parameters, *own], strict=True)]


def _array(name: str, value: jax.Array) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ModelError(
            f"{name} has the dtype {value.dtype}, which cannot be kept in a checkpoint",
            "keep weights in float32 or float16; train.precision chooses what steps compute in",
        )
    return array


def _taken(array: NDArray[Any], like: jax.Array) -> jax.Array:
    """A copy: what a checkpoint's file holds may be mapped memory that goes away."""
    return jnp.array(np.array(array), dtype=like.dtype)


def _wanted(given: dict[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if name not in given or given[name].shape != shape:
        held = f"of shape {given[name].shape}" if name in given else "missing"
        raise ModelError(f"the snapshot's {name} is {held}, this model's is {shape}", _NEW_RUN)
    return given[name]
