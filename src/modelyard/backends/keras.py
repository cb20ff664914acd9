"""Keras 3 on TensorFlow, JAX or PyTorch, on one process and on several.

Keras trains on the framework that ``KERAS_BACKEND`` names (TensorFlow, where nothing does). The workers'
gradients are summed by ``exchange.py``, between a graph that computes them and one that applies them,
so that several processes are the same for all three. docs/decisions/0014 says what else was tried.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "TF_CPP_MIN_LOG_LEVEL", "2"
)  # before TensorFlow is loaded, which greets at length

import keras
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from modelyard.backends.average import COUNT, Average
from modelyard.backends.base import (
    Backend,
    Batch,
    Estimate,
    Execution,
    OptimizerSettings,
    Snapshot,
    StepResult,
    StepSettings,
    Weight,
)
from modelyard.backends.exchange import Exchange, meet
from modelyard.backends.keras_arrays import as_array
from modelyard.backends.keras_execution import (
    choose_device,
    computing,
    differentiate,
    explain,
    machine_memory,
    settle,
)
from modelyard.backends.keras_lora import base_digest, merged
from modelyard.backends.keras_model import (
    HELD,
    KerasOps,
    Subject,
    layers_of,
    names_of,
    seed_values,
    set_precision,
    subject_of,
)
from modelyard.backends.keras_optimizer import Limits, factors
from modelyard.backends.keras_start import put_weights, weights_of
from modelyard.backends.keras_state import restore_average, restore_state, snapshot_state
from modelyard.backends.lora import other_base
from modelyard.backends.sampled_values import named_values, taken_of
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import NaturalInput, Signature
from modelyard.spec.work import World
from modelyard.tasks.own_loss import OwnLoss

_ALONE = World(rank=0, size=1, rendezvous="")


@dataclass(eq=False)
class KerasState:
    """What ``step`` changes in place."""

    subject: Subject
    program: Any
    settings: OptimizerSettings
    execution: Execution
    notes: tuple[str, ...]
    base: str = ""
    """Digest of what is frozen below adapters."""
    steps: int = 0
    """Optimizer steps so far."""
    average: Average | None = None
    """Of the weights, where it was asked for."""

    def show(self, *, average: bool) -> None:
        """Have the average in place, or the weights that are trained."""
        if self.average is not None:
            self.average.show() if average else self.average.hide()


class Keras(Backend):
    """See the contract in ``base.py``; one object belongs to one process."""

    name = "keras"
    averages = treats_by_name = adapts = recomputes = True
    ops = KerasOps()

    def __init__(self) -> None:
        self._world, self._exchange = _ALONE, Exchange(_ALONE, {})
        self._device = "cpu"

    @contextlib.contextmanager
    def join(self, world: World, *, device: str, threads: int) -> Iterator[str]:
        """Raises TrainingError where a device is missing or another worker does not come."""
        before = (self._world, self._exchange, self._device)
        with computing(world, threads), meet(world) as exchange:
            self._device = choose_device(device, world)
            self._world, self._exchange = world, exchange
            try:
                yield self._device
            finally:
                self._world, self._exchange, self._device = before

    def seed(self, value: int) -> None:
        keras.utils.set_random_seed(value % 2**32)

    def begin(
        self,
        model: object,
        task: TaskSpec,
        optimizer: OptimizerSettings,
        signature: Signature,
        input: NaturalInput | None = None,  # noqa: A002
        loss: OwnLoss | None = None,
    ) -> KerasState:
        """Raises TrainingError for an execution that cannot be had here, OutOfMemory."""
        opened = self.opened(task, loss)
        subject = subject_of(model, opened, optimizer, signature, input)
        for variable in subject.model.weights:
            self._make_equal(variable)
        base = base_digest(names_of(model), subject.fixed) if optimizer.lora else ""
        execution, program, notes = settle(subject, optimizer.execution, self._world, self.reduce)
        average = None
        if optimizer.ema:
            program.begin_average()
            average = Average(optimizer.ema, program.follow, program.exchange)
        return KerasState(
            subject=subject,
            program=program,
            settings=optimizer,
            execution=execution,
            notes=(subject.adapted, *notes) if subject.adapted else notes,
            base=base,
            average=average,
        )

    def execution(self, state: KerasState) -> Execution:
        return state.execution

    def notes(self, state: KerasState) -> tuple[str, ...]:
        return state.notes

    def weights(self, model: object, signature: Signature) -> tuple[Weight, ...]:
        return weights_of(model, signature)

    def put_weights(self, model: object, tensors: Mapping[str, NDArray[Any]]) -> object:
        return put_weights(model, tensors)

    def hold_still(self, model: object) -> bool:
        if not isinstance(model, keras.Model):
            return False
        setattr(model, HELD, True)
        return True

    def describe_device(self) -> str:
        return machine_memory()

    def step(
        self, state: KerasState, batch: Batch, settings: StepSettings
    ) -> tuple[KerasState, StepResult]:
        """Raises TrainingError where another worker was lost, OutOfMemory, ModelError where the model raises."""
        state.show(average=False)
        with explain(self._world, self._device):
            changing = factors(settings.learning_rate, state.steps + 1, state.settings.betas)
            limits = Limits(norm=settings.clip_norm, value=settings.clip_value)
            look = settings.measure_norm or settings.sample_values
            if self._world.size == 1 and not state.execution.micro_batch:
                seeds = seed_values(state.subject, settings.seed)
                given = (batch.inputs, _answers(batch), seeds, batch.global_size)
                loss, norm, seen = state.program.whole(*given, changing, limits, look)
            else:
                loss, flat = self._gradients(state, batch, settings.seed)
                self.before_exchange()
                self._add(state.subject, flat, len(batch.inputs) / batch.global_size)
                norm = state.program.apply(flat, changing, limits, look)
                seen = taken_of(flat, _sizes(state.subject)) if settings.sample_values else None
        state.steps += 1
        if state.average is not None:
            state.average.follow()
        samples = _samples(state, seen) if settings.sample_values else None
        if not (settings.measure_norm or limits.norm is not None):
            norm = None
        return state, StepResult(loss=loss, gradient_norm=norm, samples=samples)

    def evaluate(self, state: KerasState, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """In float32, whatever the steps use."""
        state.show(average=True)
        with explain(self._world, self._device), _float32(state):
            found: NDArray[np.float32] = state.program.outputs(inputs)
        return found

    def differentiate(
        self, function: Callable[..., Any], outputs: NDArray[Any], targets: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        return differentiate(function, outputs, targets)

    def reduce(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.array(values, dtype=np.float64)
        if self._world.size > 1:
            self.before_exchange()
            self._exchange.add(total)
        return total

    def snapshot(self, state: KerasState) -> Snapshot:
        state.show(average=False)
        state.program.settle()
        numbers: dict[str, Any] = {"optimizer": state.settings.name, "steps": state.steps}
        numbers |= {"base": state.base} if state.base else {}
        if state.average is not None:
            numbers[COUNT] = state.average.count
        return snapshot_state(state.subject, state.program.slots, numbers, state.program.average)

    def restore(self, state: KerasState, snapshot: Snapshot) -> KerasState:
        if snapshot.numbers.get("base", state.base) != state.base:
            raise other_base()
        state.show(average=False)
        if restore_state(state.subject, state.program.slots, state.settings.name, snapshot):
            state.steps = int(snapshot.numbers.get("steps", 0))
        state.program.refresh()
        if state.average is not None:
            state.average.count = restore_average(state.subject, state.program.average, snapshot)
        return state

    def estimate(self, state: KerasState, batch: Batch) -> Estimate | None:
        from modelyard.backends.keras_execution import estimate

        def step() -> None:
            _, result = self.step(state, batch, StepSettings(learning_rate=0.0, seed=0))
            float(result.loss)

        found = estimate(state.subject, state.execution, len(batch.targets), step)
        averages = found.gradients if state.average is not None else 0  # as many, of the same size
        return replace(found, optimizer=found.optimizer + averages)

    def export(self, state: KerasState, path: Path, signature: Signature) -> None:
        """Write ``state``'s model to ``path``; raises ExportError naming what cannot be expressed."""
        state.show(average=True)
        state.program.settle()
        with _float32(state), merged(list(layers_of(state.subject.model))):
            state.program.export(path, signature)

    def _gradients(
        self, state: KerasState, batch: Batch, seed: int
    ) -> tuple[Any, NDArray[np.float32]]:
        """Of this worker's share, in pieces of at most ``micro_batch``; each draws numbers of its own."""
        count, size = len(batch.inputs), batch.global_size
        rounds = max(1, -(-count // (state.execution.micro_batch or count or 1)))
        ends = [count * place // rounds for place in range(rounds + 1)]
        answers, total = _answers(batch), None
        if not count:  # nobody's share: the weights' sizes are all that is needed
            return np.float32(0.0), np.zeros(_size(state.subject), np.float32)
        trained, flat = sum(_sizes(state.subject)), np.empty(0, np.float32)
        for number, (start, end) in enumerate(itertools.pairwise(ends)):
            seeds = seed_values(state.subject, seed if not number else seed + number * 2**32)
            piece = tuple(answer[start:end] for answer in answers)
            loss, found = state.program.gradients(batch.inputs[start:end], piece, seeds, size)
            if total is None:
                total, flat = loss, found
            else:
                total = total + loss
                flat[:trained] += found[:trained]
                flat[trained:] = found[trained:]
        return total, flat

    def _add(self, subject: Subject, flat: NDArray[np.float32], share: float) -> None:
        """Gradients are summed, running statistics averaged by share; of the rest worker 0's are taken."""
        if self._world.size == 1:
            return
        start = sum(_sizes(subject))
        end = start + sum(int(np.prod(v.shape)) for v in subject.statistics)
        flat[start:end] *= np.float32(share)
        flat[end:] *= self._world.rank == 0
        self._exchange.add(flat)

    def _make_equal(self, variable: Any) -> None:
        if self._world.size > 1:
            array = as_array(variable.value)
            self._exchange.copy_from_first(array.reshape(-1))
            variable.assign(array)


def _answers(batch: Batch) -> tuple[NDArray[Any], ...]:
    """Targets; of blends also the other targets and the weights."""
    if batch.other_targets is None or batch.weight is None:
        return (batch.targets,)
    return (batch.targets, batch.other_targets, batch.weight)


def _sizes(subject: Subject) -> list[int]:
    return [int(np.prod(v.shape)) for v in subject.trainable]


def _size(subject: Subject) -> int:
    kept = (*subject.statistics, *subject.others)
    return sum(_sizes(subject)) + sum(int(np.prod(v.shape)) for v in kept)


@contextlib.contextmanager
def _float32(state: KerasState) -> Iterator[None]:
    if state.execution.precision == "float32":
        yield
        return
    back = set_precision(state.subject.model, "float32")
    try:
        yield
    finally:
        back()


def _samples(state: KerasState, seen: Any) -> dict[str, NDArray[Any]]:
    """Of the weights as they are now, and of the gradients that changed them."""
    names = {id(variable): name for name, variable in state.subject.names.items()}
    trained = [names[id(variable)] for variable in state.subject.trainable]
    return named_values(trained, [as_array(v) for v in state.program.variables], as_array(seen))
