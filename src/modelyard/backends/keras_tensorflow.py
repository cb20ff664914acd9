"""A Keras model's step as TensorFlow graphs, which change the model's own variables."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from modelyard.backends.keras_model import Subject
from modelyard.backends.keras_optimizer import RATE, ROOT, STEP_SIZE, Limits
from modelyard.backends.parameter_rules import Treatment
from modelyard.backends.sampled_values import counts, places, stride
from modelyard.spec.signature import Signature
from modelyard.spec.work import World

Tensor = Any
Array = NDArray[Any]


@contextlib.contextmanager
def computing(world: World, threads: int) -> Iterator[None]:  # noqa: ARG001
    """TensorFlow takes the number once, when it begins; if it has, the environment told it."""
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    yield


class Program:
    """The graphs of one training, traced when they are first run.

    A worker alone runs ``whole``: forward, backward and update. With others it runs ``gradients``,
    exchanges what comes out, and runs ``apply``. Which of them is run never depends on time, so that
    a resumed training runs the same ones.
    """

    can_compile = True
    """Whether there is a choice between compiled (XLA) and not."""

    def __init__(self, subject: Subject, *, compiled: bool) -> None:
        self._subject = subject
        self.variables = [v.value for v in subject.trainable]
        self.slots = [
            [tf.Variable(tf.zeros_like(v), trainable=False) for _ in subject.rule.slots]
            for v in self.variables
        ]
        self.average: list[Any] = []
        self._sampled = counts([int(np.prod(v.shape)) for v in self.variables])
        self._whole = _Graphs(self._step, compiled=compiled)
        self._gradients = _Graphs(self._backward, compiled=compiled)
        self._apply = _Graphs(self._applied, compiled=compiled)
        self._sizes: dict[float, Tensor] = {}
        self._looks = {look: tf.constant(look) for look in (False, True)}
        self._outputs = tf.function(self._forward, autograph=False, reduce_retracing=True)

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
        """Loss; the gradients' norm and sampled values, which are zeros where nobody looks.

        The norm is also there where it limits the step. One graph is for both: see ``sampled_values``.
        """
        given = (*self._asked(inputs, answers, seeds, size), factors, _given(limits))
        loss, norm, seen = self._whole(*given, self._looks[look])
        return loss, norm, seen

    def gradients(
        self, inputs: Array, answers: Sequence[Array], seeds: Array, size: float
    ) -> tuple[Tensor, Array]:
        """Loss, and all gradients in one flat array; then the running statistics and the others."""
        loss, flat = self._gradients(*self._asked(inputs, answers, seeds, size))
        return loss, flat.numpy()

    def apply(self, flat: Array, factors: Array, limits: Limits, look: bool) -> Tensor:
        """Take the step; gives the gradients' norm as ``whole`` does."""
        (norm,) = self._apply(flat, factors, _given(limits), self._looks[look])
        return norm

    def outputs(self, inputs: Array) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._outputs(tf.constant(inputs)).numpy()
        return found

    def export(self, path: Path, signature: Signature) -> None:
        """By Keras' writer, which is tf2onnx."""
        from modelyard.backends.keras_export import export_onnx  # loads onnx

        export_onnx(self._subject, path, signature)

    def begin_average(self) -> None:
        """Keep an average of the weights from here on."""
        self.average = [tf.Variable(v, trainable=False) for v in self.variables]

        def follow(share: Tensor) -> None:
            for held, weight in zip(self.average, self.variables, strict=True):
                held.assign_add(tf.cast(share, held.dtype) * (weight - held))

        self._follow = tf.function(follow, autograph=False)

    def follow(self, share: float) -> None:
        """Put this share of the weights into the average."""
        self._follow(np.float32(share))

    def exchange(self) -> None:
        """Weights and average change places."""
        for held, weight in zip(self.average, self.variables, strict=True):
            kept = tf.identity(weight)
            weight.assign(held)
            held.assign(kept)

    def settle(self) -> None:
        """The model's variables are the state: nothing to bring home."""

    def refresh(self) -> None:
        """The model's variables were set: nothing to fetch."""

    def _asked(
        self, inputs: Array, answers: Sequence[Array], seeds: Array, size: float
    ) -> tuple[Any, ...]:
        """As graphs take them; what is the same in each step is made a tensor once, which takes its time."""
        if size not in self._sizes:
            self._sizes[size] = tf.constant(size, tf.float32)
        drawn = seeds if self._subject.seeds else None
        return inputs, tuple(answers), drawn, self._sizes[size]

    def _forward(self, inputs: Tensor) -> Tensor:
        model = self._subject.model
        return tf.cast(model(self._subject.prepared(inputs), training=False), tf.float32)

    def _loss_and_gradients(
        self, inputs: Tensor, answers: Sequence[Tensor], seeds: Tensor, size: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        subject = self._subject
        for place, state in enumerate(subject.seeds):
            state.assign(tf.cast(seeds[place], state.dtype))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.variables)
            outputs = subject.model(subject.prepared(inputs), training=subject.training)
            loss = subject.loss(outputs, answers, size)
            if subject.model.losses:
                loss += tf.add_n(subject.model.losses) * (
                    tf.cast(len_of(inputs), tf.float32) / size
                )
        zero = tf.UnconnectedGradients.ZERO
        found = tape.gradient(loss, self.variables, unconnected_gradients=zero)
        return loss, [tf.convert_to_tensor(gradient) for gradient in found]

    def _step(
        self,
        inputs: Tensor,
        answers: Sequence[Tensor],
        seeds: Tensor,
        size: Tensor,
        factors: Tensor,
        clip: Any,
        look: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        loss, gradients = self._loss_and_gradients(inputs, answers, seeds, size)
        return loss, *self._update(gradients, factors, clip, look)

    def _applied(self, flat: Tensor, factors: Tensor, clip: Any, look: Tensor) -> tuple[Tensor]:
        norm, _ = self._update(self._taken_apart(flat), factors, clip, look)
        return (norm,)

    def _backward(
        self, inputs: Tensor, answers: Sequence[Tensor], seeds: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss, gradients = self._loss_and_gradients(inputs, answers, seeds, size)
        kept = [*self._subject.statistics, *self._subject.others]
        members = [*gradients, *(tf.cast(v.value, tf.float32) for v in kept)]
        return loss, tf.concat([tf.reshape(member, [-1]) for member in members], 0)

    def _taken_apart(self, flat: Tensor) -> list[Tensor]:
        """The gradients; what else is in ``flat`` goes into its variables."""
        kept = [*self._subject.statistics, *self._subject.others]
        sizes = [int(np.prod(v.shape)) for v in (*self._subject.trainable, *kept)]
        parts = tf.split(flat, sizes)
        shaped = [
            tf.reshape(part, v.shape)
            for part, v in zip(parts, (*self._subject.trainable, *kept), strict=True)
        ]
        for part, variable in zip(shaped[len(self.variables) :], kept, strict=True):
            variable.assign(tf.cast(part, variable.dtype))
        return shaped[: len(self.variables)]

    def _seen(self, gradients: list[Tensor]) -> Tensor:
        """Their sampled values, (values,)."""
        looked = [gradients[place] for place in places(len(gradients))]
        flat = [tf.reshape(gradient, [-1]) for gradient in looked]
        return tf.concat([values[:: stride(values.shape[0])] for values in flat], 0)

    def _update(
        self, gradients: list[Tensor], factors: Tensor, clip: Any, look: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Change the weights; the gradients' norm and sampled values, or zeros."""
        most, bound = clip
        raw = gradients
        norm, seen = tf.cond(
            look,
            lambda: (tf.linalg.global_norm(raw), self._seen(raw)),
            lambda: (tf.zeros([]), tf.zeros([sum(self._sampled)])),
        )
        if bound is not None:
            gradients = [tf.clip_by_value(gradient, -bound, bound) for gradient in gradients]
        if most is not None:
            norm = tf.linalg.global_norm(raw)
            share = tf.minimum(most / (norm + 1e-6), 1.0)
            gradients = [gradient * share for gradient in gradients]
        rule = self._subject.rule
        members = zip(self.variables, gradients, self.slots, self._subject.treated, strict=True)
        for variable, gradient, slots, treated in members:
            if rule.adaptive:
                self._adapt(variable, gradient, slots, factors, treated)
                continue
            weight, changed = rule.update(variable, gradient, list(slots), factors, treated)
            for slot, value in zip(slots, changed, strict=True):
                slot.assign(value)
            variable.assign(weight)
        return norm, seen

    def _adapt(
        self,
        variable: Any,
        gradient: Tensor,
        slots: list[Any],
        factors: Tensor,
        treated: Treatment,
    ) -> None:
        """By TensorFlow's own kernel: the same formula, with the correction of bias moved into rate and epsilon."""
        rule, decay, scale = self._subject.rule, treated.decay, treated.scale
        if decay and rule.decoupled:
            variable.assign(variable * (1.0 - factors[RATE] * (scale * decay)))
        elif decay:
            gradient += variable * decay
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=slots[0].handle,
            v=slots[1].handle,
            beta1_power=0.0,
            beta2_power=0.0,
            lr=factors[STEP_SIZE] * (factors[ROOT] if scale == 1.0 else factors[ROOT] * scale),
            beta1=rule.betas[0],
            beta2=rule.betas[1],
            epsilon=rule.epsilon * factors[ROOT],
            grad=gradient,
        )


class _Graphs:
    """A function as a graph for each form of its arguments: arrays, numbers, None and tuples of these.

    ``tf.function`` finds the graph for its arguments anew in each call, and a concrete function binds
    them to its signature, which take as long as a small model's step (0.5 ms of 0.9): here the form is
    looked up, and the graph is run by the operation that runs graphs.
    """

    def __init__(self, function: Callable[..., Any], *, compiled: bool) -> None:
        program = tf.function(function, jit_compile=compiled, autograph=False)

        def calling(*given: Any) -> Any:
            return program(*given)

        # XLA's program is called by a graph, which is run as quickly as any other.
        self._function = tf.function(calling, autograph=False) if compiled else program
        self._found: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        form = _form(arguments)
        tensors = _tensors(arguments)
        run = self._found.get(form)
        if run is None:
            graph = self._function.get_concrete_function(*tensors)
            run = self._found[form] = _runner(graph)
        return run(*tensors)


def _runner(graph: Any) -> Callable[..., Any]:
    """``graph`` called with tensors, None and tuples of these."""
    held, kinds = list(graph.captured_inputs), [output.dtype for output in graph.outputs]

    def run(*arguments: Any) -> Any:
        given = [*_leaves(arguments), *held]
        return tf.raw_ops.StatefulPartitionedCall(args=given, Tout=kinds, f=graph)

    return run


def _leaves(value: Any) -> Iterator[Tensor]:
    """The tensors, in the order in which a graph has its inputs."""
    if isinstance(value, tuple):
        for one in value:
            yield from _leaves(one)
    elif value is not None:
        yield value


def _form(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_form, value))
    return None if value is None else (value.shape, value.dtype)


def _tensors(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_tensors, value))
    return value if value is None or tf.is_tensor(value) else tf.constant(value)


def _given(limits: Limits) -> tuple[Any, Any]:
    """As a graph takes them: numbers that may differ from step to step, or None, which is another graph."""
    most, bound = (None if x is None else np.float32(x) for x in (limits.norm, limits.value))
    return most, bound


def len_of(inputs: Tensor) -> Tensor:
    """Samples in a batch, known when the graph is made or not."""
    return inputs.shape[0] if inputs.shape[0] is not None else tf.shape(inputs)[0]


def differentiate(
    function: Callable[..., Any], outputs: Array, targets: Array
) -> tuple[Array, Array | None]:
    """``function(outputs, targets)``, and the slope of its sum by the outputs, if it has one."""
    watched = tf.constant(outputs)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(watched)
        found = tf.convert_to_tensor(function(watched, tf.constant(targets)))
        total = tf.reduce_sum(found)
    slopes = tape.gradient(total, watched)
    return found.numpy(), None if slopes is None else tf.convert_to_tensor(slopes).numpy()
