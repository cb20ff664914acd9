"""FSDP2: each worker keeps a slice of every weight, of its gradient and of its optimizer state."""

import copy
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from modelyard.spec.errors import ModelError


def shard_model(
    model: nn.Module, device: torch.device, size: int, dtype: torch.dtype | None, methods: list[str]
) -> None:
    """Cut ``model`` in place; the members of its module lists, its repeated blocks, are gathered one by one.

    With ``dtype`` weights travel and compute in it, while slices and gradients stay float32.
    ``methods`` are called besides ``forward`` and need the weights as well.
    """
    mesh = init_device_mesh(device.type, (size,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None)
    try:
        for block in _blocks(model):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"the model cannot be sharded: {error}", 'set train.parallel = "replicate"'
        ) from error
    for name in methods:
        register_fsdp_forward_method(model, name)


def _blocks(module: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            found += [block for block in child if any(True for _ in block.parameters())]
        else:
            found += _blocks(child)
    return found


def outline(model: nn.Module) -> nn.Module:
    """A copy without memory for weights: what a sharded model is exported as, once it is filled."""
    memo: dict[int, Any] = {
        id(tensor): nn.Parameter(tensor.detach().to("meta"), requires_grad=tensor.requires_grad)
        for tensor in model.parameters()
    }
    return copy.deepcopy(model, memo)


def filled(outlined: nn.Module, model: nn.Module) -> nn.Module:
    """``outlined`` with the whole weights of the sharded ``model``; all workers must call it."""
    whole = copy.deepcopy(outlined)
    state = {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in model.state_dict().items()
    }
    whole.load_state_dict(state, assign=True)
    return whole
