"""A JAX model as pure functions of named arrays: made from a Flax NNX module, or from ``(init, apply)``.

- A module: its ``nnx.Param`` are trained; its other variables (running statistics) are kept and
  carried along. Streams of random numbers inside it are set anew in each step.
- Two functions, for whoever writes JAX without a library: ``init(key) -> parameters``, any tree of
  float arrays, and ``apply(parameters, inputs)`` or ``apply(parameters, inputs, key) -> outputs``.
  ``key`` is None where nothing may be drawn: in evaluation and in the service.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from modelyard.spec.errors import ModelError
from modelyard.spec.signature import Signature

Arrays = list[Any]
"""JAX arrays, or their shapes."""
Forward = Callable[[Arrays, Arrays, jax.Array, jax.Array | None], tuple[Any, Arrays]]


_HELD = "held_still"
"""Of a module: it is trained as it is judged."""


@dataclass(frozen=True)
class Functional:
    """A model without a state of its own."""

    names: tuple[str, ...]
    """Of the parameters, as they stand in a checkpoint."""
    parameters: Arrays
    kept_names: tuple[str, ...]
    kept: Arrays
    """What forward changes and no gradient does: running statistics."""
    forward: Forward
    """Parameters, what is kept, inputs, and a key in training -> outputs, and what is kept then."""
    frozen: frozenset[str] = frozenset()
    """Names of parameters that are not trained."""
    still: frozenset[str] = frozenset()
    """Names of what is kept and yet changed by nothing: statistics of frozen norms."""
    fixed: int = 0
    """How many at the end of ``kept`` nothing changes: frozen weights, in no checkpoint."""
    whole: "tuple[Functional, Callable[[Arrays, Arrays], tuple[Arrays, Arrays]]] | None" = None
    """Of one with adapters: the model without, and what makes its parameters and kept arrays."""

    @property
    def trained_names(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name not in self.frozen)

    @property
    def averaged(self) -> list[bool]:
        """Which of ``kept`` workers average by their shares: running statistics that go on. Without the fixed ones."""
        own = self.kept[: len(self.kept) - self.fixed]
        return [
            bool(jnp.issubdtype(value.dtype, jnp.floating)) and name not in self.still
            for name, value in zip(self.kept_names, own, strict=True)
        ]

    def trained(self, parameters: Arrays) -> Arrays:
        """Those of all ``parameters`` that are trained."""
        if not self.frozen:
            return parameters
        pairs = zip(self.names, parameters, strict=True)
        return [array for name, array in pairs if name not in self.frozen]

    def joined(self, parameters: Arrays, trained: Arrays) -> Arrays:
        """All ``parameters``, with ``trained`` in the places of the trained ones."""
        if not self.frozen:
            return trained
        new = iter(trained)
        pairs = zip(self.names, parameters, strict=True)
        return [old if name in self.frozen else next(new) for name, old in pairs]

    def outlined(self) -> "Functional":
        """The same with shapes in place of arrays: the first weights need not stay in memory."""
        parameters, kept = (
            [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
            for arrays in (self.parameters, self.kept)
        )
        return replace(self, parameters=parameters, kept=kept)


def hold_still(model: object) -> bool:
    """From now on a module is trained as it is judged: no dropout, norms by their running statistics.

    False for functions that draw from a key, which nobody but they know the use of.
    """
    if isinstance(model, tuple) and len(model) == 2 and all(callable(part) for part in model):
        return not _takes_key(model[1])
    from flax import nnx

    if isinstance(model, nnx.Module):
        setattr(model, _HELD, True)
        return True
    return False


def functional(model: object, key: jax.Array, frozen: frozenset[str] = frozenset()) -> Functional:
    """The model whose parameters named in ``frozen`` are not trained.

    A batch norm that is frozen as a whole computes as in service, and its running statistics stay too.
    Raises ModelError for what is neither a module nor a pair of functions.
    """
    if isinstance(model, tuple) and len(model) == 2 and all(callable(part) for part in model):
        return replace(_from_pair(model[0], model[1], key), frozen=frozen)
    from flax import nnx  # only here: a model of plain functions needs no Flax

    if isinstance(model, nnx.Module):
        return replace(_from_module(model, frozen), frozen=frozen)
    raise ModelError(
        f"the model's function returned a {type(model).__qualname__}, "
        "neither a flax.nnx.Module nor two functions",
        "return the module itself, or (init, apply)",
    )


def check_model(model: Functional, output_size: int, signature: Signature) -> None:
    """Does it fit the task? Tried on shapes alone, as in training and as in service."""
    inputs, given = outline_of(signature, 2), words_of(signature)
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        outputs, _ = jax.eval_shape(
            lambda p, k, x: model.forward(p, k, x, None), model.parameters, model.kept, inputs
        )
        jax.eval_shape(model.forward, model.parameters, model.kept, inputs, key)
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ModelError(
            f"the model cannot take {given}: {type(error).__name__}: {reason}",
            "make its first layers fit that shape"
            if len(signature.inputs) == 1
            else "let it take one dict, and its first layers fit those shapes",
        ) from error
    if not isinstance(outputs, jax.ShapeDtypeStruct):
        raise ModelError(
            f"the model returned a {type(outputs).__qualname__}, not one array of shape (2, {output_size})",
            "return only the array with the outputs",
        )
    if outputs.shape != (2, output_size) or outputs.dtype != jnp.float32:
        raise ModelError(
            f"for {given} the model gave {outputs.dtype} of shape {outputs.shape}; "
            f"this task needs float32 of shape (2, {output_size})",
            f"the last layer must have {output_size} output{'s' if output_size != 1 else ''}"
            if outputs.dtype == jnp.float32
            else "return float32, e.g. `.astype(jnp.float32)`",
        )
    if not model.parameters:
        raise ModelError("the model has nothing to train", "give it parameters (nnx.Param)")


def outlines_of(signature: Signature, batch: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The inputs by name, as shapes alone: JAX counts in 32 bits."""
    return {
        tensor.name: jax.ShapeDtypeStruct(
            (batch, *(size or 1 for size in tensor.shape[1:])),
            jnp.int32 if tensor.dtype == "int64" else jnp.float32,
        )
        for tensor in signature.inputs
    }


def outline_of(signature: Signature, batch: Any) -> Any:
    """What the model takes: one array, or a dict of them where samples have several parts."""
    found = outlines_of(signature, batch)
    return found if len(found) > 1 else next(iter(found.values()))


def words_of(signature: Signature) -> str:
    """The shapes that a model must take, for messages."""
    shapes = {name: outline.shape for name, outline in outlines_of(signature, 2).items()}
    if len(shapes) == 1:
        return f"an input of shape {next(iter(shapes.values()))} (batch first)"
    named = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    return f"a dict of inputs of shapes {named} (batch first)"


def _from_pair(init: Callable[..., Any], apply: Callable[..., Any], key: jax.Array) -> Functional:
    try:
        tree = init(key)
    except Exception as error:
        raise ModelError(
            f"init(key) raised {type(error).__name__}: {error}", "mend the model's first function"
        ) from error
    names, parameters, outline = named(tree)
    takes_key = _takes_key(apply)

    def forward(
        parameters: Arrays, kept: Arrays, inputs: jax.Array, key: jax.Array | None
    ) -> tuple[Any, Arrays]:
        given = (key,) if takes_key else ()
        return apply(outline.unflatten(parameters), inputs, *given), kept

    return Functional(names, [jnp.asarray(p) for p in parameters], (), [], forward)


def _takes_key(apply: Callable[..., Any]) -> bool:
    """Whether it draws numbers in training."""
    return len(inspect.signature(apply).parameters) > 2


def _from_module(model: Any, frozen: frozenset[str]) -> Functional:
    from flax import nnx

    kinds = _kinds()
    model.eval()
    serving = nnx.split(model, *kinds)[0]
    if not getattr(model, _HELD, False):
        model.train()
    still: set[str] = set()
    for path, module in nnx.iter_modules(model) if frozen else ():
        own, statistics = (
            {".".join([*map(str, path), name]) for name in named(nnx.state(module, kind))[0]}
            for kind in (nnx.Param, nnx.BatchStat)
        )
        if isinstance(module, nnx.BatchNorm) and own and own <= frozen:
            module.eval()
            still |= statistics
    training, trained, keys, counts, others = nnx.split(model, *kinds)
    names, parameters, outline = named(trained)
    kept_names, kept, kept_outline = named(others)
    streams, stream_outline = jax.tree.flatten(keys)
    _, count_outline = jax.tree.flatten(counts)
    zeros = [jnp.zeros_like(count) for count in jax.tree.leaves(counts)]

    def forward(
        parameters: Arrays, kept: Arrays, inputs: jax.Array, key: jax.Array | None
    ) -> tuple[Any, Arrays]:
        drawn = streams if key is None else _streams(key, streams)
        whole = nnx.merge(
            serving if key is None else training,
            outline.unflatten(parameters),
            stream_outline.unflatten(drawn),
            count_outline.unflatten(zeros),
            kept_outline.unflatten(kept),
        )
        outputs = whole(inputs)
        return outputs, jax.tree.leaves(nnx.split(whole, *kinds)[4])

    return Functional(names, parameters, kept_names, kept, forward, still=frozenset(still))


def module_states(model: Any) -> tuple[Any, Any]:
    """A module's states that a checkpoint keeps: what is trained, and what it keeps beside."""
    from flax import nnx

    _, trained, _, _, others = nnx.split(model, *_kinds())
    return trained, others


def _kinds() -> tuple[Any, ...]:
    """Of variables, in the order that a module is split into."""
    from flax import nnx

    return (nnx.Param, nnx.RngKey, nnx.RngCount, ...)


def _streams(key: jax.Array, streams: Sequence[jax.Array]) -> Arrays:
    """For each stream of random numbers in the module, a key of its own."""
    found = []
    for place, stream in enumerate(streams):
        own = jax.random.fold_in(key, place)
        if stream.shape:  # a layer that was made several times over
            own = jax.random.split(own, stream.shape)
        found.append(own)
    return found


def named(tree: Any) -> tuple[tuple[str, ...], Arrays, Any]:
    """Names with dots, leaves, and what puts them together again."""
    found, outline = jax.tree_util.tree_flatten_with_path(tree)
    names = [".".join(_word(step) for step in path if _isnamed(step)) for path, _ in found]
    return tuple(names), [leaf for _, leaf in found], outline


def _isnamed(step: Any) -> bool:
    """Not the step from a Flax variable to its value."""
    return not (isinstance(step, jax.tree_util.GetAttrKey) and step.name == "value")


def _word(step: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(step, attribute):
            return str(getattr(step, attribute))
    return str(step)
