"""A PyTorch training state as named arrays, and back: no pickle, no position numbers."""

from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import nn

from modelyard.backends.base import Snapshot
from modelyard.spec.errors import ModelError

Arrays = dict[str, NDArray[Any]]


def snapshot_state(model: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> Snapshot:
    """``model.<name>`` and ``optimizer.<parameter>.<quantity>``: copies, with the dtypes they have."""
    lent = view_state(model, optimizer, name)
    return replace(lent, tensors={key: array.copy() for key, array in lent.tensors.items()})


def view_state(model: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> Snapshot:
    """The same, sharing memory with tensors that lie on the CPU."""
    tensors = {f"model.{key}": _array(key, value) for key, value in model.state_dict().items()}
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    for parameter, quantities in optimizer.state.items():
        for quantity, value in quantities.items():
            if value is not None:  # the momentum of an SGD without momentum
                key = f"optimizer.{names[id(parameter)]}.{quantity}"
                tensors[key] = _array(key, value)
    return Snapshot(tensors=tensors, numbers={"optimizer": name})


def restore_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, name: str, snapshot: Snapshot
) -> None:
    """Put ``snapshot`` into model and optimizer in place; weights alone leave the optimizer as it is.

    Raises ModelError naming what does not fit; nothing is changed then.
    """
    weights = _part(snapshot.tensors, "model.")
    _check_fit({key: tuple(v.shape) for key, v in model.state_dict().items()}, weights, "weights")
    kept = _part(snapshot.tensors, "optimizer.")
    states = _optimizer_states(model, optimizer, kept)
    taken = snapshot.numbers.get("optimizer", name)
    if kept and taken != name:
        raise ModelError(
            f"the snapshot was made with the optimizer {taken!r}, this training uses {name!r}",
            "start a new run",
        )
    model.load_state_dict({key: torch.from_numpy(np.array(v)) for key, v in weights.items()})
    if kept:
        optimizer.load_state_dict(
            {"state": states, "param_groups": optimizer.state_dict()["param_groups"]}
        )


def _array(name: str, value: torch.Tensor) -> NDArray[Any]:
    try:
        array: NDArray[Any] = value.detach().cpu().numpy()
    except TypeError as error:
        raise ModelError(
            f"{name} has the dtype {value.dtype}, which cannot be kept in a checkpoint",
            "keep weights in float32, float16 or float64",
        ) from error
    return array


def _part(tensors: Arrays, prefix: str) -> Arrays:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _optimizer_states(
    model: nn.Module, optimizer: torch.optim.Optimizer, kept: Arrays
) -> dict[int, dict[str, torch.Tensor]]:
    """torch's own form: position of the parameter in the optimizer -> quantity -> tensor."""
    members = [p for group in optimizer.param_groups for p in group["params"]]
    positions = {id(parameter): place for place, parameter in enumerate(members)}
    named = {key: p for key, p in model.named_parameters() if id(p) in positions}
    states: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in kept.items():
        name, _, quantity = key.rpartition(".")
        if name not in named or value.shape not in ((), tuple(named[name].shape)):
            raise ModelError(
                f"the snapshot holds optimizer state for {name} of shape {value.shape}, which this model does not have",
                "the model has changed since the checkpoint: start a new run",
            )
        states.setdefault(positions[id(named[name])], {})[quantity] = torch.from_numpy(
            np.array(value)
        )
    return states


def _check_fit(own: dict[str, tuple[int, ...]], given: Arrays, what: str) -> None:
    problems = [f"{key} is missing" for key in own.keys() - given.keys()]
    problems += [f"{key} is not in the model" for key in given.keys() - own.keys()]
    problems += [
        f"{key} has shape {given[key].shape}, the model has {shape}"
        for key, shape in own.items()
        if key in given and given[key].shape != shape
    ]
    if problems:
        raise ModelError(
            f"the {what} of the snapshot do not fit this model: {'; '.join(sorted(problems)[:5])}",
            "the model has changed since the checkpoint: start a new run",
        )
