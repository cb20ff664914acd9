"""JAX: Flax NNX modules or plain functions, one process or several, every step a compiled program."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from modelyard.backends.base import (
    Backend,
    Batch,
    Execution,
    OptimizerSettings,
    Snapshot,
    StepResult,
    StepSettings,
    Weight,
)
from modelyard.backends.exchange import Exchange, meet
from modelyard.backends.jax_average import JaxAverage
from modelyard.backends.jax_lora import base_digest, with_adapters
from modelyard.backends.jax_loss import JaxOps, differentiate
from modelyard.backends.jax_model import (
    Arrays,
    Functional,
    check_model,
    functional,
    hold_still,
)
from modelyard.backends.jax_recompute import recompute_blocks
from modelyard.backends.jax_start import put_weights, weights_of
from modelyard.backends.jax_state import restored, snapshot_of
from modelyard.backends.jax_step import Programs, compile_programs, finishing, seed_words
from modelyard.backends.jax_treatment import treat
from modelyard.backends.jax_update import State as OptimizerState
from modelyard.backends.jax_update import begin_state, make_update
from modelyard.backends.jax_workers import (
    at_place,
    choose_device,
    device_kind,
    device_name,
    explain,
)
from modelyard.backends.lora import other_base
from modelyard.backends.sampled_values import named_values
from modelyard.spec.errors import TrainingError
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import NaturalInput, Signature
from modelyard.spec.work import World
from modelyard.tasks.own_loss import OwnLoss
from modelyard.tasks.parts import parts_of

_ALONE = World(rank=0, size=1, rendezvous="")


@dataclass(eq=False)
class JaxState:
    """The arrays of a training, replaced at each step, and the programs that replace them."""

    model: Functional
    """Its names, shapes and function; the arrays are in the fields below."""
    programs: Programs
    settings: OptimizerSettings
    execution: Execution
    parameters: Arrays
    optimizer: OptimizerState
    kept: Arrays
    average: JaxAverage | None = None
    """Of ``parameters``, where it was asked for."""
    integers: bool = False
    """The model takes numbers that stand for something, not float32."""
    notes: tuple[str, ...] = ()
    base: str = ""
    """Digest of what is frozen below adapters."""

    @property
    def judged(self) -> Arrays:
        """The parameters that are evaluated and exported."""
        return self.parameters if self.average is None else self.average.arrays


class Jax(Backend):
    """See the contract in ``base.py``; one object belongs to one process."""

    name = "jax"
    averages = treats_by_name = adapts = recomputes = True
    ops = JaxOps()

    def __init__(self) -> None:
        self._world = _ALONE
        self._exchange = Exchange(_ALONE, {})
        self._device: Any = None
        self._seed = 0

    @contextlib.contextmanager
    def join(self, world: World, *, device: str, threads: int) -> Iterator[str]:
        """Raises TrainingError where a device is missing or another worker does not come."""
        before = (self._world, self._device, self._exchange)
        try:
            with at_place(world, device, threads) as self._device, meet(world) as self._exchange:
                self._world = world
                yield device_name(self._device)
        finally:
            self._world, self._device, self._exchange = before

    def seed(self, value: int) -> None:
        """Of ``init(key)``; a module's function asks for ``seed`` itself."""
        self._seed = value

    def begin(
        self,
        model: object,
        task: TaskSpec,
        optimizer: OptimizerSettings,
        signature: Signature,
        input: NaturalInput | None = None,  # noqa: A002
        loss: OwnLoss | None = None,
    ) -> JaxState:
        """Raises TrainingError for an execution that cannot be had here, OutOfMemory."""
        execution = self._execution(optimizer.execution)
        opened = self.opened(task, loss)
        words = recompute_blocks(model) if execution.gradient_checkpointing else ""
        found = functional(model, self._key())
        if optimizer.lora is not None:
            found, said = with_adapters(found, optimizer.lora, self._key())
            words = "; ".join(filter(None, (words, said)))
        check_model(found, opened.output_size, signature)
        treated = treat(found, optimizer, signature)
        if frozen := frozenset(name for name, one in treated.items() if not one.trained):
            found = functional(model, self._key(), frozen)
        update = make_update(optimizer, [treated[name] for name in found.trained_names])
        parameters, kept = self._equal(found.parameters), self._equal(found.kept)
        half, parts = execution.precision == "bfloat16", parts_of(signature, input)
        base = base_digest(found, kept) if optimizer.lora else ""
        return JaxState(
            model=found.outlined(),
            programs=compile_programs(found, opened, update, finishing(input, parts), half=half),
            settings=optimizer,
            execution=execution,
            parameters=parameters,
            optimizer=begin_state(optimizer, found.trained(parameters)),
            kept=kept,
            average=JaxAverage(found, parameters, optimizer.ema) if optimizer.ema else None,
            integers=not parts and signature.inputs[0].dtype == "int64",
            notes=(words,) if words else (),
            base=base,
        )

    def weights(self, model: object, signature: Signature) -> tuple[Weight, ...]:
        return weights_of(model, self._key())

    def put_weights(self, model: object, tensors: Mapping[str, NDArray[Any]]) -> object:
        return put_weights(model, tensors, self._key())

    def notes(self, state: JaxState) -> tuple[str, ...]:
        return state.notes

    def execution(self, state: JaxState) -> Execution:
        return state.execution

    def hold_still(self, model: object) -> bool:
        return hold_still(model)

    def describe_device(self) -> str:
        return device_kind(self._place())

    def step(
        self, state: JaxState, batch: Batch, settings: StepSettings
    ) -> tuple[JaxState, StepResult]:
        """Raises TrainingError where another worker was lost, OutOfMemory, ModelError where the model raises."""
        try:
            return state, self._step(state, batch, settings)
        except (RuntimeError, MemoryError, TypeError) as error:
            raise explain(error, self._world, self._place()) from error

    def evaluate(self, state: JaxState, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """In float32. The last, shorter batch is filled up, so that few shapes must be compiled."""
        count = len(inputs)
        full = 1 << max(count - 1, 0).bit_length()
        if full != count:
            more = np.zeros((full - count, *inputs.shape[1:]), inputs.dtype)
            inputs = np.concatenate([inputs, more])
        try:
            found = state.programs.outputs(state.judged, state.kept, self._inputs(state, inputs))
            return np.array(found[:count])
        except (RuntimeError, MemoryError) as error:
            raise explain(error, self._world, self._place()) from error

    def differentiate(
        self, function: Callable[..., Any], outputs: NDArray[Any], targets: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        return differentiate(function, outputs, _narrow(targets))

    def reduce(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.array(values, dtype=np.float64)
        if self._world.size > 1:
            self.before_exchange()
            self._exchange.add(total)
        return total

    def snapshot(self, state: JaxState) -> Snapshot:
        lent = self.view(state)
        return replace(lent, tensors={key: array.copy() for key, array in lent.tensors.items()})

    def view(self, state: JaxState) -> Snapshot:
        found = snapshot_of(
            state.model, state.parameters, state.kept, state.optimizer, state.settings.name
        )
        numbers = found.numbers | ({"base": state.base} if state.base else {})
        found = replace(found, numbers=numbers)
        return found if state.average is None else state.average.into(found)

    def restore(self, state: JaxState, snapshot: Snapshot) -> JaxState:
        if snapshot.numbers.get("base", state.base) != state.base:
            raise other_base()
        fixed = state.kept[len(state.kept) - state.model.fixed :]
        state.parameters, kept, state.optimizer = restored(
            state.model, state.optimizer, state.settings.name, snapshot
        )
        state.kept = kept + fixed
        if state.average is not None:
            state.average.restore(snapshot)
        return state

    def export(self, state: JaxState, path: Path, signature: Signature) -> None:
        # Only here: a worker that trains need not wait for onnx to be imported.
        from modelyard.backends.jax_export import export_onnx

        model, parameters, kept = state.model, state.judged, state.kept
        if model.whole is not None:
            model, merge = model.whole
            parameters, kept = merge(parameters, kept)
        export_onnx(model, parameters, kept, path, signature)

    def _step(self, state: JaxState, batch: Batch, settings: StepSettings) -> StepResult:
        limits = tuple(
            None if limit is None else np.float32(limit)
            for limit in (settings.clip_value, settings.clip_norm)
        )
        look = settings.measure_norm or settings.sample_values
        asked = (np.float32(settings.learning_rate), limits, look)
        most = state.execution.micro_batch or len(batch.targets)
        if self._world.size == 1 and len(batch.targets) <= most:
            self.before_exchange()
            new = state.programs.alone(
                state.parameters,
                state.optimizer,
                state.kept,
                self._batch(state, batch, settings.seed, slice(None)),
                asked,
            )
            state.parameters, state.optimizer, state.kept, loss, norm, seen = new
        else:
            flat, counts, loss = self._gathered(state, batch, settings.seed, most)
            new = state.programs.update(
                state.parameters, state.optimizer, state.kept, counts, flat, asked
            )
            state.parameters, state.optimizer, state.kept, norm, seen = new
        if state.average is not None:
            state.average.after(state.parameters)
        samples = None
        if settings.sample_values:
            trained = state.model.trained(state.parameters)
            samples = named_values(state.model.trained_names, trained, np.array(seen))
        measured = settings.measure_norm or settings.clip_norm is not None
        return StepResult(loss=loss, gradient_norm=norm if measured else None, samples=samples)

    def _gathered(
        self, state: JaxState, batch: Batch, seed: int, most: int
    ) -> tuple[NDArray[np.float32], Arrays, Any]:
        """Gradients of all workers' samples, in pieces of at most ``most`` here; this worker's loss."""
        count, flat, loss, counts = len(batch.targets), None, None, state.kept
        rounds = max(1, -(-count // most))
        ends = [count * place // rounds for place in range(rounds + 1)]
        for start, end in itertools.pairwise(ends):
            piece = self._batch(state, batch, seed, slice(start, end))
            share = np.float32((end - start) / batch.global_size)
            more, counts, part = state.programs.gradients(
                state.parameters, state.kept, piece, share
            )
            flat = more if flat is None else state.programs.add(flat, more)
            loss = part if loss is None else loss + part
        whole = np.array(flat)  # waits until it has been computed
        self.before_exchange()
        self._exchange.add(whole)
        return whole, counts, loss

    def _batch(self, state: JaxState, batch: Batch, seed: int, piece: slice) -> tuple[Any, ...]:
        answers = [batch.targets]
        if batch.other_targets is not None and batch.weight is not None:
            answers += [batch.other_targets, batch.weight]
        return (
            self._inputs(state, batch.inputs[piece]),
            tuple(_narrow(answer[piece]) for answer in answers),
            seed_words(seed),
            np.float32(batch.global_size),
        )

    def _inputs(self, state: JaxState, array: NDArray[Any]) -> NDArray[Any]:
        """A copy: a program that has not begun yet reads its arguments from the caller's memory."""
        return array.astype(np.int32) if state.integers else np.array(array)

    def _equal(self, arrays: Arrays) -> Arrays:
        """Worker 0's, on every worker."""
        if self._world.size == 1:
            return [jax.numpy.array(array) for array in arrays]
        found = []
        for array in arrays:
            held = np.array(array)
            self._exchange.copy_from_first(held)
            found.append(jax.numpy.array(held))
        return found

    def _execution(self, wanted: Execution) -> Execution:
        """Without any ``"auto"``. Programs are always compiled, and XLA lays arrays out as it likes."""
        if wanted.precision == "float16":
            raise TrainingError(
                'the jax backend has no train.precision = "float16"', 'use "bfloat16" or "float32"'
            )
        if wanted.parallel == "shard" and self._world.size > 1:
            raise TrainingError(
                'the jax backend has no train.parallel = "shard"',
                'use parallel = "replicate": each worker keeps all weights',
            )
        if wanted.linear in ("onednn", "mixed"):
            raise TrainingError(
                f'the jax backend has no train.linear = "{wanted.linear}": XLA chooses',
                'set train.linear = "auto"',
            )
        if wanted.channels_last is True:
            raise TrainingError(
                "the jax backend has no train.channels_last: XLA lays arrays out as it likes",
                'set train.channels_last = "auto"',
            )
        precision = wanted.precision
        if precision == "auto":
            precision = "float32" if self._place().platform == "cpu" else "bfloat16"
        return replace(
            wanted,
            precision=precision,
            compile=True,
            channels_last=False,
            linear="blas",
            parallel="replicate",
        )

    def _key(self) -> jax.Array:
        return jax.random.wrap_key_data(seed_words(self._seed))

    def _place(self) -> Any:
        return self._device or choose_device("cpu", self._world)


def _narrow(array: NDArray[Any]) -> NDArray[Any]:
    """A copy; JAX counts in 32 bits."""
    return array.astype(np.int32) if array.dtype == np.int64 else np.array(array)
