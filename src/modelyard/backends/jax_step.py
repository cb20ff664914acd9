"""The compiled programs of a JAX training: a whole step, its two halves around an exchange, and outputs.

A worker alone runs one program a step. Of several workers each runs ``gradients``, adds up what comes
out with the others outside of JAX, and runs ``update``. A program is compiled once for each shape of
batch. Whether a norm or samples are asked for never changes the arithmetic of a step: a resumed
training that is looked at in other moments stays the same bit for bit.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelyard.backends.jax_look import looked_at, norm_of
from modelyard.backends.jax_loss import JaxOps
from modelyard.backends.jax_model import Arrays, Functional
from modelyard.backends.jax_update import State, Update
from modelyard.spec.signature import ImageInput, NaturalInput
from modelyard.tasks.base import Task
from modelyard.tasks.parts import Part

Limits = tuple[Any, Any]
"""Of each number in a gradient, and of the norm; None: none."""
Asked = tuple[Any, Limits, Any]
"""Of a step: the learning rate, the limits, and whether somebody looks."""
Answers = tuple[jax.Array, ...]
"""Targets; of blends also the other targets and the weights."""


@dataclass(frozen=True)
class Programs:
    """What ``compile_programs`` makes. Arrays of the old state are given away to each step."""

    alone: Callable[..., Any]
    gradients: Callable[..., Any]
    update: Callable[..., Any]
    outputs: Callable[..., Any]
    add: Callable[..., Any]


def compile_programs(
    model: Functional,
    task: Task,
    update: Update,
    finish: Callable[[jax.Array], Any],
    *,
    half: bool,
) -> Programs:
    """``finish``: see ``finishing``; ``half``: the model computes in bfloat16, all else in float32."""
    outlines, averaged = model.trained(model.parameters), model.averaged
    members = (*outlines, *itertools.compress(model.kept, averaged))
    sizes, count = [int(np.prod(p.shape)) for p in members], len(outlines)
    differentiate = jax.value_and_grad(_loss_of(model, task, finish, half=half), has_aux=True)
    moved = _moving(update)

    def alone(parameters: Arrays, state: State, kept: Arrays, batch: Any, asked: Asked) -> Any:
        trained = model.trained(parameters)
        (loss, kept), gradients = differentiate(trained, parameters, kept, *batch)
        trained, state, *seen = moved(trained, gradients, state, asked)
        return model.joined(parameters, trained), state, kept, loss, *seen

    def gradients(parameters: Arrays, kept: Arrays, batch: Any, share: jax.Array) -> Any:
        """One flat array: gradients, and running statistics by this worker's share of the batch."""
        (loss, after), found = differentiate(model.trained(parameters), parameters, kept, *batch)
        pieces = [g.astype(jnp.float32) for g in found]
        means = itertools.compress(after, averaged)
        pieces += [value.astype(jnp.float32) * share for value in means]
        counts = [value for value, mean in zip(after, averaged, strict=False) if not mean]
        return jnp.concatenate([piece.reshape(-1) for piece in pieces]), counts, loss

    def finish_step(
        parameters: Arrays,
        state: State,
        kept: Arrays,
        counts: Arrays,
        flat: jax.Array,
        asked: Asked,
    ) -> Any:
        trained = model.trained(parameters)
        pieces = jnp.split(flat, np.cumsum(sizes)[:-1])
        found = [p.reshape(like.shape) for p, like in zip(pieces, trained, strict=False)]
        means, whole = iter(pieces[count:]), iter(counts)
        kept = [
            next(means).reshape(old.shape).astype(old.dtype) if mean else next(whole)
            for old, mean in zip(kept, averaged, strict=False)
        ] + kept[len(averaged) :]
        trained, state, *seen = moved(trained, found, state, asked)
        return model.joined(parameters, trained), state, kept, *seen

    return Programs(
        alone=jax.jit(alone, donate_argnums=(0, 1, 2)),
        gradients=jax.jit(gradients),
        update=jax.jit(finish_step, donate_argnums=(0, 1, 2)),
        outputs=jax.jit(_outputs_of(model, finish)),
        add=jax.jit(jnp.add, donate_argnums=0),
    )


def _outputs_of(model: Functional, finish: Callable[[jax.Array], Any]) -> Callable[..., jax.Array]:
    """As in service: nothing is drawn and nothing kept."""

    def outputs(parameters: Arrays, kept: Arrays, inputs: jax.Array) -> jax.Array:
        answer, _ = model.forward(parameters, kept, finish(inputs), None)
        whole: jax.Array = answer.astype(jnp.float32)
        return whole

    return outputs


def _loss_of(
    model: Functional, task: Task, finish: Callable[[jax.Array], Any], *, half: bool
) -> Callable[..., tuple[jax.Array, Arrays]]:
    """This worker's part of the global mean loss, and what the model keeps."""

    def loss_of(
        trained: Arrays,
        parameters: Arrays,
        kept: Arrays,
        inputs: jax.Array,
        answers: Answers,
        seed: jax.Array,
        size: jax.Array,
    ) -> tuple[jax.Array, Arrays]:
        key, finished = jax.random.wrap_key_data(seed), finish(inputs)
        parameters = model.joined(parameters, trained)
        if half:
            parameters, finished = [_halved(p) for p in parameters], jax.tree.map(_halved, finished)
        outputs, after = model.forward(parameters, kept, finished, key)
        outputs = outputs.astype(jnp.float32)
        losses = task.losses(JaxOps, outputs, answers[0])
        if len(answers) > 1:  # of a blend of two, each label's loss by its share
            others = task.losses(JaxOps, outputs, answers[1])
            losses = others + answers[2] * (losses - others)
        # What is kept stays in the precision it has.
        after = [new.astype(old.dtype) for new, old in zip(after, kept, strict=True)]
        return losses.sum() / size, after

    return loss_of


def _moving(update: Update) -> Callable[..., tuple[Arrays, State, jax.Array, jax.Array]]:
    """An update, after clipping where a limit is given: by value, by norm; then what ``looked_at`` gives."""

    def moved(
        parameters: Arrays, gradients: Arrays, state: State, asked: Asked
    ) -> tuple[Arrays, State, jax.Array, jax.Array]:
        rate, (bound, limit), look = asked
        norm, seen = looked_at(gradients, look)
        if bound is not None:
            gradients = [jnp.clip(gradient, -bound, bound) for gradient in gradients]
        if limit is not None:
            norm = norm_of(gradients)
            factor = jnp.minimum(limit / (norm + 1e-6), 1.0)
            gradients = [gradient * factor for gradient in gradients]
        parameters, state = update(parameters, gradients, state, rate)
        return parameters, state, norm, seen

    return moved


def seed_words(seed: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """A key's two words of 32 bits."""
    return np.array([(seed >> 32) & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)


def _halved(value: jax.Array) -> jax.Array:
    return value.astype(jnp.bfloat16) if value.dtype == jnp.float32 else value


def finishing(spec: NaturalInput | None, parts: Sequence[Part]) -> Callable[[jax.Array], Any]:
    """Model form from pictures as they are stored, or from rows of several parts; others stay as they are."""
    if parts:
        return lambda rows: {part.name: _taken_out(rows, part) for part in parts}
    if not isinstance(spec, ImageInput):
        scale = shift = None
    else:
        scale, shift = (
            np.array(values, np.float32).reshape(-1, 1, 1) for values in (spec.scale, spec.shift)
        )

    def finish(inputs: jax.Array) -> jax.Array:
        if inputs.dtype != jnp.uint8:
            return inputs
        if scale is None:
            raise ValueError("uint8 inputs need the `input` that begin() was not given")
        return inputs.astype(jnp.float32) * scale + shift

    return finish


def _taken_out(rows: jax.Array, part: Part) -> jax.Array:
    """One of the model's inputs from rows of bytes, uint8 (n, bytes): float32, or int32 for tokens."""
    size, dtype = np.dtype(part.dtype).itemsize, np.dtype(part.dtype)
    values = rows[:, part.start : part.stop]
    if dtype == np.int64:  # JAX counts in 32 bits; the low half comes first
        values, size, dtype = values.reshape(len(rows), -1, 2, 4)[:, :, 0], 4, np.dtype(np.int32)
    if size > 1:
        values = jax.lax.bitcast_convert_type(values.reshape(len(rows), -1, size), dtype)
    values = values.reshape(len(rows), *part.shape)
    if part.integers:
        return values
    values = values.astype(jnp.float32)
    if not part.scale:
        return values
    scale, shift = (
        np.array(numbers, np.float32).reshape(-1, 1, 1) for numbers in (part.scale, part.shift)
    )
    return values * scale + shift
