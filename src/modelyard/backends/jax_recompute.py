"""Gradient checkpointing in JAX: what a module's blocks compute is computed again in the backward pass.

Chen et al., Training Deep Nets with Sublinear Memory Cost (2016), by ``nnx.remat``. The blocks are the
modules that lie together in a list or a tuple.
"""

from typing import Any

from modelyard.spec.errors import TrainingError


def recompute_blocks(model: object) -> str:
    """Change ``model`` in place; what was done, in words. Raises TrainingError where it has no blocks."""
    if isinstance(model, tuple):
        raise TrainingError(
            "train.gradient_checkpointing cannot see the blocks of a model of plain functions",
            "put jax.checkpoint around your block's function, and leave the field out",
        )
    from flax import nnx

    found = _blocks(model, nnx)
    if not found:
        raise TrainingError(
            f"train.gradient_checkpointing found no blocks in {type(model).__qualname__}",
            "keep repeated blocks in an nnx.List or nnx.Sequential",
        )
    made: dict[Any, Any] = {}
    for block in found:
        own: Any = type(block)
        if own not in made:
            made[own] = type(own)(own.__name__, (own,), {"__call__": nnx.remat(own.__call__)})
        block.__class__ = made[own]
    return f"activations of {len(found)} blocks are computed again in the backward pass"


def _blocks(module: Any, nnx: Any) -> list[Any]:
    """Outermost blocks; what is within them is computed again with them."""
    found: list[Any] = []
    for value in vars(module).values():
        if isinstance(value, list | tuple | nnx.List):
            members = [part for part in value if isinstance(part, nnx.Module)]
            found += [part for part in members if _has_weights(part, nnx)]
        elif isinstance(value, nnx.Module):
            found += _blocks(value, nnx)
    return found


def _has_weights(module: Any, nnx: Any) -> bool:
    return any(True for _ in nnx.iter_graph(module) if isinstance(_[1], nnx.Param))
