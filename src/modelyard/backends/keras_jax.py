"""A Keras model's step as compiled JAX functions of all its values."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from modelyard.backends.jax_look import looked_at, norm_of
from modelyard.backends.keras_model import Subject
from modelyard.backends.keras_optimizer import Limits
from modelyard.spec.errors import ExportError
from modelyard.spec.signature import Signature
from modelyard.spec.work import World

Tensor = Any
Array = NDArray[Any]
_THREADS = "NPROC"


@contextlib.contextmanager
def computing(world: World, threads: int) -> Iterator[None]:  # noqa: ARG001
    """JAX makes as many threads as the variable says, when it is first used."""
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = str(threads)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_THREADS, None)
        else:
            os.environ[_THREADS] = before


@partial(jax.jit, donate_argnums=0)
def _followed(held: list[Tensor], weights: list[Tensor], share: Tensor) -> list[Tensor]:
    return [
        old + share.astype(old.dtype) * (new - old) for old, new in zip(held, weights, strict=True)
    ]


class Program:
    """See ``keras_tensorflow``; here the values go in and come out, and the model's variables rest meanwhile."""

    can_compile = False

    def __init__(self, subject: Subject, *, compiled: bool) -> None:
        self._subject = subject
        self._fixed = list(subject.model.non_trainable_variables)
        places = {id(v): place for place, v in enumerate(self._fixed)}
        self._kept = [places[id(v)] for v in (*subject.statistics, *subject.others)]
        self._seeds = [places[id(v)] for v in subject.seeds]
        self.slots: list[list[Tensor]] = [
            [jnp.zeros_like(v.value) for _ in subject.rule.slots] for v in subject.trainable
        ]
        self.average: list[Tensor] = []
        self.variables: list[Tensor] = []
        self._rest: list[Tensor] = []
        self.refresh()
        self._whole = jax.jit(self._step, donate_argnums=(0, 1, 2))
        self._gradients = jax.jit(self._backward, donate_argnums=(1,))
        self._apply = jax.jit(self._applied, donate_argnums=(0, 1, 2))
        self._outputs = jax.jit(self._forward)

    def whole(
        self,
        inputs: Array,
        answers: Sequence[Array],
        seeds: Array,
        size: float,
        factors: Array,
        limits: Limits,
        look: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.variables, self._rest, self.slots, loss, norm, seen = self._whole(
            self.variables, self._rest, self.slots,
            *_copied(inputs, answers), seeds, np.float32(size), factors, _given(limits), look,
        )  # fmt: skip
        return loss, norm, seen

    def gradients(
        self, inputs: Array, answers: Sequence[Array], seeds: Array, size: float
    ) -> tuple[Tensor, Array]:
        loss, flat, self._rest = self._gradients(
            self.variables, self._rest, *_copied(inputs, answers), seeds, np.float32(size)
        )
        return loss, np.array(flat)

    def apply(self, flat: Array, factors: Array, limits: Limits, look: bool) -> Tensor:
        self.variables, self._rest, self.slots, norm = self._apply(
            self.variables, self._rest, self.slots, flat, factors, _given(limits), look
        )
        return norm

    def outputs(self, inputs: Array) -> NDArray[np.float32]:
        return np.asarray(self._outputs(self.variables, self._rest, inputs))

    def export(self, path: Path, signature: Signature) -> None:
        """There is no way from here; but the weights are the same on TensorFlow."""
        raise ExportError(
            "Keras on JAX cannot write ONNX here",
            "run the same command with KERAS_BACKEND=tensorflow",
        )

    def begin_average(self) -> None:
        self.average = [jnp.array(weight) for weight in self.variables]

    def follow(self, share: float) -> None:
        self.average = _followed(self.average, self.variables, np.float32(share))

    def exchange(self) -> None:
        self.variables, self.average = self.average, self.variables

    def settle(self) -> None:
        """Bring the values home into the model's variables."""
        for variable, value in zip(self._subject.trainable, self.variables, strict=True):
            variable.assign(jnp.array(value))
        for variable, value in zip(self._fixed, self._rest, strict=True):
            variable.assign(jnp.array(value))

    def refresh(self) -> None:
        """Fetch the values from the model's variables: copies, as a step gives its own away."""
        self.variables = [jnp.array(v.value) for v in self._subject.trainable]
        self._rest = [jnp.array(v.value) for v in self._fixed]

    def _forward(self, weights: list[Tensor], rest: list[Tensor], inputs: Tensor) -> Tensor:
        subject = self._subject
        outputs, _ = subject.model.stateless_call(
            weights, rest, subject.prepared(inputs), training=False
        )
        return outputs.astype(jnp.float32)

    def _loss_and_gradients(
        self,
        weights: list[Tensor],
        rest: list[Tensor],
        inputs: Tensor,
        answers: Sequence[Tensor],
        seeds: Tensor,
        size: Tensor,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        subject, rest = self._subject, list(rest)
        for number, place in enumerate(self._seeds):
            rest[place] = seeds[number].astype(rest[place].dtype)

        def loss_of(weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            outputs, changed, added = subject.model.stateless_call(
                weights,
                rest,
                subject.prepared(inputs),
                training=subject.training,
                return_losses=True,
            )
            loss = subject.loss(outputs, answers, size)
            return loss + sum(added) * (len(inputs) / size), changed

        (loss, changed), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights)
        return loss, gradients, changed

    def _backward(
        self, weights: list[Tensor], rest: list[Tensor], *given: Any
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        loss, gradients, rest = self._loss_and_gradients(weights, rest, *given)
        members = [*gradients, *(rest[place].astype(jnp.float32) for place in self._kept)]
        return loss, jnp.concatenate([jnp.ravel(member) for member in members]), rest

    def _step(
        self,
        weights: list[Tensor],
        rest: list[Tensor],
        slots: list[list[Tensor]],
        inputs: Tensor,
        answers: Sequence[Tensor],
        seeds: Tensor,
        size: Tensor,
        factors: Tensor,
        clip: tuple[Tensor, Tensor],
        look: Tensor,
    ) -> Any:
        loss, gradients, rest = self._loss_and_gradients(
            weights, rest, inputs, answers, seeds, size
        )
        weights, slots, *seen = self._update(weights, slots, gradients, factors, clip, look)
        return weights, rest, slots, loss, *seen

    def _applied(
        self,
        weights: list[Tensor],
        rest: list[Tensor],
        slots: list[list[Tensor]],
        flat: Tensor,
        factors: Tensor,
        clip: tuple[Tensor, Tensor],
        look: Tensor,
    ) -> Any:
        rest = list(rest)
        shapes = [w.shape for w in weights] + [rest[place].shape for place in self._kept]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
        parts = [
            part.reshape(shape) for part, shape in zip(jnp.split(flat, ends), shapes, strict=True)
        ]
        for part, place in zip(parts[len(weights) :], self._kept, strict=True):
            rest[place] = part.astype(rest[place].dtype)
        found = parts[: len(weights)]
        weights, slots, norm, _ = self._update(weights, slots, found, factors, clip, look)
        return weights, rest, slots, norm

    def _update(
        self,
        weights: list[Tensor],
        slots: list[list[Tensor]],
        gradients: list[Tensor],
        factors: Tensor,
        clip: tuple[Tensor, Tensor],
        look: Tensor,
    ) -> tuple[list[Tensor], list[list[Tensor]], Tensor, Tensor]:
        raw, (limit, bound) = gradients, clip
        norm, seen = looked_at(raw, look)
        if bound is not None:
            gradients = [jnp.clip(gradient, -bound, bound) for gradient in gradients]
        if limit is not None:
            norm = norm_of(raw)
            share = jnp.minimum(limit / (norm + 1e-6), 1.0)
            gradients = [gradient * share for gradient in gradients]
        rule: Any = self._subject.rule.update
        update = partial(rule, factors=factors)
        made = [
            update(weight, gradient, held, treated=treated)
            for weight, gradient, held, treated in zip(
                weights, gradients, slots, self._subject.treated, strict=True
            )
        ]
        return [weight for weight, _ in made], [held for _, held in made], norm, seen


def differentiate(
    function: Callable[..., Any], outputs: Array, targets: Array
) -> tuple[Array, Array | None]:
    """``function(outputs, targets)``, and the slope of its sum by the outputs, if it has one."""
    (_, found), slopes = _compiled(function)(jnp.asarray(outputs), jnp.asarray(targets))
    return np.asarray(found), np.asarray(slopes)


@lru_cache(maxsize=8)
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Once for each function and shape, as an evaluation asks for it batch by batch."""

    def summed(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        found = jnp.asarray(function(outputs, targets))
        return found.sum(), found

    program: Callable[..., Any] = jax.jit(jax.value_and_grad(summed, has_aux=True))
    return program


def _copied(inputs: Array, answers: Sequence[Array]) -> tuple[Array, tuple[Array, ...]]:
    """A program that has not begun yet reads its arguments from the caller's memory."""
    return np.array(inputs), tuple(np.array(answer) for answer in answers)


def _given(limits: Limits) -> tuple[Any, Any]:
    """As a program takes them: numbers that may differ from step to step, or None, which is another program."""
    most, bound = (None if x is None else np.float32(x) for x in (limits.norm, limits.value))
    return most, bound
