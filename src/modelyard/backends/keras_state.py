"""A Keras training state as named arrays, and back."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from modelyard.backends.average import PREFIX, averages_in
from modelyard.backends.base import Snapshot
from modelyard.backends.keras_arrays import as_array
from modelyard.backends.keras_model import Subject
from modelyard.backends.snapshots import check_fit
from modelyard.spec.errors import ModelError

Arrays = dict[str, NDArray[Any]]


def snapshot_state(
    subject: Subject,
    slots: Sequence[Sequence[Any]],
    numbers: dict[str, Any],
    average: Sequence[Any] = (),
) -> Snapshot:
    """``model.<name>``, ``optimizer.<weight>.<quantity>`` and, where one is kept, ``ema.<name>``: copies."""
    names = {id(variable): name for name, variable in subject.names.items()}
    found = {f"model.{name}": as_array(variable.value) for name, variable in subject.names.items()}
    for variable, held in zip(subject.trainable, slots, strict=True):
        for quantity, value in zip(subject.rule.slots, held, strict=True):
            found[f"optimizer.{names[id(variable)]}.{quantity}"] = as_array(value)
    for variable, value in zip(subject.trainable, average, strict=False):
        found[PREFIX + names[id(variable)]] = as_array(value)
    return Snapshot(tensors=found, numbers=numbers)


def restore_average(subject: Subject, average: list[Any], snapshot: Snapshot) -> int:
    """Put the averages of ``snapshot`` in place, or its weights where it has none; how many steps are in them."""
    names = {id(variable): name for name, variable in subject.names.items()}
    mine = [names[id(variable)] for variable in subject.trainable]
    found, count = averages_in(snapshot, dict.fromkeys(mine))
    for place, name in enumerate(mine):
        _put(average, place, np.array(found[name]))
    return count


def restore_state(
    subject: Subject, slots: Sequence[list[Any]], optimizer: str, snapshot: Snapshot
) -> bool:
    """Put the whole tensors of ``snapshot`` in place; True where it held an optimizer's state.

    Weights alone leave the optimizer as it is. Raises ModelError naming what does not fit; nothing
    is changed then.
    """
    weights = _part(snapshot.tensors, "model.")
    kept = _part(snapshot.tensors, "optimizer.")
    own = {name: tuple(variable.shape) for name, variable in subject.names.items()}
    check_fit(own, weights, "weights")
    taken = snapshot.numbers.get("optimizer", optimizer)
    complete = bool(kept) or "steps" in snapshot.numbers
    if complete and taken != optimizer:
        raise ModelError(
            f"the snapshot was made with the optimizer {taken!r}, this training uses {optimizer!r}",
            "start a new run",
        )
    names = {id(variable): name for name, variable in subject.names.items()}
    if complete:
        shapes = {
            f"{names[id(variable)]}.{quantity}": tuple(variable.shape)
            for variable in subject.trainable
            for quantity in subject.rule.slots
        }
        check_fit(shapes, kept, "optimizer's quantities")
    for name, variable in subject.names.items():
        variable.assign(np.array(weights[name]))
    if complete:
        for variable, held in zip(subject.trainable, slots, strict=True):
            for place, quantity in enumerate(subject.rule.slots):
                _put(held, place, np.array(kept[f"{names[id(variable)]}.{quantity}"]))
    return complete


def _put(held: list[Any], place: int, array: NDArray[Any]) -> None:
    if hasattr(held[place], "assign"):  # TensorFlow's variables stay, graphs know them
        held[place].assign(array)
    elif hasattr(held[place], "copy_"):
        held[place].copy_(keras.ops.convert_to_tensor(array))
    else:
        held[place] = keras.ops.convert_to_tensor(array)


def _part(tensors: Arrays, prefix: str) -> Arrays:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
