"""Gradient checkpointing in PyTorch: what a block computes is not kept but computed again in the backward pass.

Chen et al., Training Deep Nets with Sublinear Memory Cost (2016). The blocks are the members of module
lists, stages of a sequence, or the pieces that a long flat sequence is cut into; a transformers model
knows its own. Random numbers are drawn again as they were, so that gradients stay the same bit for bit.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from modelyard.spec.errors import TrainingError

_SHORTEST = 4
"""Layers of a flat sequence that are worth cutting."""


class _Recomputed:
    """Before a block's own class: its forward pass, forgotten where gradients will be asked for.

    A class and not a function put in place: copies of the model, for an export, keep their own weights.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        own: Any = super().forward  # type: ignore[misc]
        module: Any = self
        if not (module.training and torch.is_grad_enabled()):
            return own(*args, **kwargs)
        return _checkpoint(own, [module], *args, **kwargs)


class _InPieces:
    """The same for a flat sequence: about as many pieces as each has layers."""

    def forward(self, inputs: torch.Tensor) -> Any:
        layers: Any = self
        if not (layers.training and torch.is_grad_enabled()):
            return super().forward(inputs)  # type: ignore[misc]
        members = list(layers)
        size = math.ceil(len(members) / round(math.sqrt(len(members))))
        for start in range(0, len(members), size):
            piece = members[start : start + size]
            inputs = _checkpoint(partial(_in_turn, piece), piece, inputs)
        return inputs


def _in_turn(layers: Sequence[nn.Module], inputs: torch.Tensor) -> Any:
    for layer in layers:
        inputs = layer(inputs)
    return inputs


def _checkpoint(
    function: Callable[..., Any], modules: Sequence[nn.Module], *args: Any, **kwargs: Any
) -> Any:
    statistics = [
        buffer
        for module in modules
        for norm in module.modules()
        if isinstance(norm, nn.modules.batchnorm._NormBase)
        for buffer in norm.buffers()
    ]
    if statistics:
        kwargs["context_fn"] = lambda: (contextlib.nullcontext(), _unchanged(statistics))
    return checkpoint(function, *args, use_reentrant=False, **kwargs)


@contextlib.contextmanager
def _unchanged(statistics: Sequence[torch.Tensor]) -> Iterator[None]:
    """The second pass must not move running means and variances once more."""
    before = [tensor.detach().clone() for tensor in statistics]
    try:
        yield
    finally:
        for tensor, value in zip(statistics, before, strict=True):
            tensor.data.copy_(value)  # of which autograd need not know: batch statistics were used


def recompute_blocks(model: nn.Module) -> str:
    """Change ``model`` in place; what was done, in words. Raises TrainingError where it has no blocks."""
    if getattr(model, "supports_gradient_checkpointing", False):
        guest: Any = model
        # Transformers 5.20 or so gave it another name, and warns of the old one.
        enable = getattr(guest, "activation_checkpointing_enable", None)
        (enable or guest.gradient_checkpointing_enable)({"use_reentrant": False})
        return "activations are computed again in the backward pass, by the model's own blocks"
    found = list(_blocks(model))
    if not found:
        raise TrainingError(
            f"train.gradient_checkpointing found no blocks in {type(model).__qualname__}",
            f"put repeated blocks into a torch.nn.ModuleList, or {_SHORTEST} layers or more into a torch.nn.Sequential",
        )
    for block, kind in found:
        own = type(block)
        block.__class__ = type(own.__name__, (kind, own), {"__module__": own.__module__})
    return f"activations of {len(found)} blocks are computed again in the backward pass"


def _blocks(module: nn.Module) -> Iterator[tuple[nn.Module, type]]:
    """Outermost blocks; what is within them is computed again with them."""
    children = list(module.children())
    if isinstance(module, nn.ModuleList):
        yield from ((child, _Recomputed) for child in children if _has_weights(child))
        return
    if isinstance(module, nn.Sequential):
        stages = [child for child in children if any(child.children()) and _has_weights(child)]
        if stages:
            yield from ((child, _Recomputed) for child in stages)
            return
        if len(children) >= _SHORTEST:
            yield module, _InPieces
        return
    for child in children:
        yield from _blocks(child)


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
