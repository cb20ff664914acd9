"""A PyTorch training state as named arrays, and back: no pickle, no position numbers."""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import nn

from modelyard.backends.base import Part, Snapshot
from modelyard.backends.snapshots import check_fit
from modelyard.spec.errors import ModelError

Arrays = dict[str, NDArray[Any]]


def snapshot_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    name: str,
    only: Collection[str] | None = None,
) -> Snapshot:
    """``model.<name>`` and ``optimizer.<parameter>.<quantity>``: copies, with the dtypes they have.

    Of what is sharded, this worker's slices and where they lie. With ``only``, no other weights.
    """
    lent = view_state(model, optimizer, name, only)
    return replace(lent, tensors={key: array.copy() for key, array in lent.tensors.items()})


def view_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    name: str,
    only: Collection[str] | None = None,
) -> Snapshot:
    """The same, sharing memory with tensors that lie on the CPU."""
    found = {f"model.{key}": value for key, value in _own(model, only).items()}
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    for parameter, quantities in optimizer.state.items():
        for quantity, value in quantities.items():
            if value is not None:  # the momentum of an SGD without momentum
                found[f"optimizer.{names[id(parameter)]}.{quantity}"] = value
    parts: dict[str, Part] = {}
    for key, value in found.items():
        if (part := part_of(value)) is not None:
            parts[key] = part
    return Snapshot(
        tensors={key: _array(key, local(value)) for key, value in found.items()},
        numbers={"optimizer": name},
        parts=parts,
    )


def restore_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    name: str,
    snapshot: Snapshot,
    only: Collection[str] | None = None,
) -> None:
    """Put the whole tensors of ``snapshot`` into model and optimizer in place.

    With ``only``, these are all that it holds. Weights alone leave the optimizer as it is. Raises ModelError naming what does not fit; nothing
    is changed then.
    """
    weights = _part(snapshot.tensors, "model.")
    own = _own(model, only)
    check_fit({key: tuple(v.shape) for key, v in own.items()}, weights, "weights")
    kept = _part(snapshot.tensors, "optimizer.")
    states = _optimizer_states(model, optimizer, kept)
    taken = snapshot.numbers.get("optimizer", name)
    if kept and taken != name:
        raise ModelError(
            f"the snapshot was made with the optimizer {taken!r}, this training uses {name!r}",
            "start a new run",
        )
    if any(part_of(value) for value in own.values()):
        with torch.no_grad():
            for key, value in own.items():
                local(value).copy_(slice_of(torch.from_numpy(np.array(weights[key])), value))
    else:
        whole = {k: torch.from_numpy(np.array(v)) for k, v in weights.items()}
        model.load_state_dict(whole, strict=only is None)
    if "optimizer" in snapshot.numbers:  # what it has learned since belongs to no weights any more
        optimizer.state.clear()
    for parameter, quantities in states.items():
        optimizer.state[parameter] = quantities


def _own(model: nn.Module, only: Collection[str] | None) -> dict[str, torch.Tensor]:
    found = model.state_dict()
    return found if only is None else {key: found[key] for key in found if key in only}


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this worker holds of it. Only sharded tensors have that method; their class is slow to import."""
    held: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return held


def part_of(tensor: torch.Tensor) -> Part | None:
    """Where this worker's slice lies; None for a tensor that it holds whole."""
    mesh: Any = getattr(tensor, "device_mesh", None)
    if mesh is None:
        return None
    shape = tuple(tensor.shape)
    # Sharded along the first axis as torch.chunk cuts: equal slices, the last ones shorter or empty.
    place, size = mesh.get_local_rank(), mesh.size()
    start = min(-(-shape[0] // size) * place, shape[0])
    return Part(offset=(start, *(0 for _ in shape[1:])), shape=shape)


def slice_of(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This worker's part of a whole tensor, as ``like`` is cut."""
    part = part_of(like)
    if part is None:
        return whole
    length = local(like).shape[0]
    return whole[part.offset[0] : part.offset[0] + length]


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
) -> dict[torch.Tensor, dict[str, torch.Tensor]]:
    """Parameter -> quantity -> tensor, on its device and in its memory order, as fused kernels need them."""
    fused = {id(p): bool(g.get("fused")) for g in optimizer.param_groups for p in g["params"]}
    named = {key: p for key, p in model.named_parameters() if id(p) in fused}
    states: dict[torch.Tensor, dict[str, torch.Tensor]] = {}
    for key, value in kept.items():
        name, _, quantity = key.rpartition(".")
        if name not in named or value.shape not in ((), tuple(named[name].shape)):
            raise ModelError(
                f"the snapshot holds optimizer state for {name} of shape {value.shape}, which this model does not have",
                "the model has changed since the checkpoint: start a new run",
            )
        parameter, whole = named[name], torch.from_numpy(np.array(value))
        if quantity == "step":
            # Fused kernels count on the device, the others in memory, where they need not wait for it.
            own = whole.to(local(parameter).device if fused[id(parameter)] else "cpu")
        else:
            own = torch.empty_like(parameter.detach())
            local(own).copy_(slice_of(whole, parameter))
        states.setdefault(parameter, {})[quantity] = own
    return states
