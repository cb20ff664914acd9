"""PyTorch: one process or several, float32 or mixed precision, eager or compiled, replicated or sharded."""

import contextlib
import gc
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
from modelyard.backends.pytorch_begin import TorchState, begin_training
from modelyard.backends.pytorch_clip import clip_gradients
from modelyard.backends.pytorch_errors import explain, is_out_of_memory
from modelyard.backends.pytorch_look import device_usage, profiled, sampled_values
from modelyard.backends.pytorch_lora import merged
from modelyard.backends.pytorch_loss import TorchOps, differentiate
from modelyard.backends.pytorch_parallel import Alone
from modelyard.backends.pytorch_start import library_tensors, put_weights, weights_of
from modelyard.backends.pytorch_state import restore_state, snapshot_state, view_state
from modelyard.backends.pytorch_still import hold_still
from modelyard.backends.pytorch_workers import choose_device, device_kind, join_workers
from modelyard.spec.errors import ModelError, YardError
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import NaturalInput, Signature
from modelyard.spec.work import World
from modelyard.tasks.own_loss import OwnLoss

_ALONE = World(rank=0, size=1, rendezvous="")
Tensors = tuple[torch.Tensor, ...]


class PyTorch(Backend):
    """See the contract in ``base.py``; one object belongs to one process."""

    name = "pytorch"
    averages = treats_by_name = adapts = recomputes = True
    ops = TorchOps()

    def __init__(self) -> None:
        self._world = _ALONE
        self._device = torch.device("cpu")
        self._states: weakref.WeakSet[TorchState] = weakref.WeakSet()

    @contextlib.contextmanager
    def join(self, world: World, *, device: str, threads: int) -> Iterator[str]:
        """Raises TrainingError where a device is missing or another worker does not come."""
        before = (self._world, self._device, torch.get_num_threads())
        torch.set_num_threads(threads)
        try:
            self._world, self._device = world, choose_device(device, world)
            with join_workers(world, self._device):
                try:
                    yield str(self._device)
                finally:
                    self._unwrap()
        finally:
            self._world, self._device = before[:2]
            torch.set_num_threads(before[2])

    def seed(self, value: int) -> None:
        torch.manual_seed(value)

    def begin(
        self,
        model: object,
        task: TaskSpec,
        optimizer: OptimizerSettings,
        signature: Signature,
        input: NaturalInput | None = None,  # noqa: A002
        loss: OwnLoss | None = None,
    ) -> TorchState:
        """Raises TrainingError for an execution that cannot be had here, OutOfMemory."""
        opened = self.opened(task, loss)
        try:
            state = begin_training(
                model,
                opened,
                optimizer,
                signature,
                input,
                world=self._world,
                device=self._device,
                reduce=lambda numbers: self.reduce(np.array(numbers)).tolist(),
            )
        except (RuntimeError, MemoryError) as error:
            raise self._explain(error) from error
        if state.together.equally_often and state.execution.micro_batch:
            self.evaluation_batch = min(type(self).evaluation_batch, state.execution.micro_batch)
        self._states.add(state)
        return state

    def execution(self, state: TorchState) -> Execution:
        return state.execution

    def notes(self, state: TorchState) -> tuple[str, ...]:
        return state.notes

    def weights(self, model: object, signature: Signature) -> tuple[Weight, ...]:
        return weights_of(model, signature)

    def library_tensors(self, model: object, folder: Path) -> dict[str, NDArray[Any]] | None:
        return library_tensors(model, folder)

    def put_weights(self, model: object, tensors: Mapping[str, NDArray[Any]]) -> object:
        return put_weights(model, tensors)

    def hold_still(self, model: object) -> bool:
        return hold_still(model)

    def describe_device(self) -> str:
        return device_kind(self._device)

    def step(
        self, state: TorchState, batch: Batch, settings: StepSettings
    ) -> tuple[TorchState, StepResult]:
        """Raises TrainingError where another worker was lost, OutOfMemory, ModelError where the model raises."""
        try:
            with state.kernels:
                return state, self._step(state, batch, settings)
        except (RuntimeError, MemoryError) as error:
            raise self._explain(error) from error

    def evaluate(self, state: TorchState, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """In float32, whatever the steps use, but for sharded weights, which stay in their precision."""
        state.judged.eval()
        try:
            return self._outputs(state, inputs)
        except (RuntimeError, MemoryError) as error:
            raise self._explain(error) from error
        finally:
            state.model.train()

    def differentiate(
        self, function: Callable[..., Any], outputs: NDArray[Any], targets: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        return differentiate(function, self._tensor(outputs), self._tensor(targets))

    def reduce(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.array(values, dtype=np.float64)
        if self._world.size == 1:
            return total
        tensor = torch.from_numpy(total).to(self._device)
        self.before_exchange()
        try:
            torch.distributed.all_reduce(tensor)
        except RuntimeError as error:
            raise self._explain(error) from error
        result: NDArray[np.float64] = tensor.cpu().numpy()
        return result

    def snapshot(self, state: TorchState) -> Snapshot:
        return state.whole(snapshot_state(*state.held), copy=True)

    def view(self, state: TorchState) -> Snapshot:
        return state.whole(view_state(*state.held), copy=False)

    def restore(self, state: TorchState, snapshot: Snapshot) -> TorchState:
        if state.adapted is not None:
            state.adapted.check(snapshot.numbers)
        model, optimizer, name, only = state.held
        restore_state(model, optimizer, name, snapshot, only)
        state.update.forget()
        state.precision.restore(snapshot.numbers)
        if state.average is not None:
            state.average.restore(snapshot)
        return state

    def export(self, state: TorchState, path: Path, signature: Signature) -> None:
        """Of sharded weights all workers must call it, since each holds a part."""
        # Only here: a worker that trains need not wait for onnx to be imported.
        from modelyard.backends.pytorch_export import export_onnx

        model = state.judged
        if state.outline is not None:
            from modelyard.backends.pytorch_shard import filled

            model = filled(state.outline, state.model)
        model = model if state.adapted is None else merged(model)
        export_onnx(model, path, signature)

    def profile(self, path: Path) -> contextlib.AbstractContextManager[None]:
        return profiled(path, self._device)

    def device_usage(self) -> tuple[int | None, float | None]:
        return device_usage(self._device)

    def estimate(self, state: TorchState, batch: Batch) -> Estimate | None:
        from modelyard.backends.pytorch_estimate import estimate

        def forward(count: int) -> None:
            inputs = self._inputs(state, batch.inputs[:count])
            self._loss(state, inputs, (self._tensor(batch.targets[:count]),), batch.global_size)

        def step() -> None:
            self.step(state, batch, StepSettings(learning_rate=0.0, seed=0))

        try:
            return estimate(state, len(batch.targets), forward, step)
        except (RuntimeError, MemoryError) as error:
            raise self._explain(error) from error

    def _step(self, state: TorchState, batch: Batch, settings: StepSettings) -> StepResult:
        if state.average is not None:
            state.average.hide()
        self._seed_step(settings.seed)
        together, size = state.together, batch.global_size
        inputs, answers = self._inputs(state, batch.inputs), self._answers(batch)
        if state.execution.micro_batch is None:
            loss = self._backward(state, inputs, answers, size)
        else:
            loss = self._accumulate(state, inputs, answers, size)
        if not together.beside:
            self.before_exchange()
        together.finish(len(inputs) / size)
        scaler = state.precision.scaler
        if scaler is not None:
            scaler.unscale_(state.optimizer)
        norm = clip_gradients(state.parameters, settings)
        samples = sampled_values(state.model) if settings.sample_values else None
        if scaler is None:
            state.update(settings.learning_rate)
        else:
            state.update.set_rate(settings.learning_rate)
            scaler.step(state.optimizer)
            scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
        if state.average is not None:
            state.average.follow()
        return StepResult(loss=loss, gradient_norm=norm, samples=samples)

    def _backward(
        self, state: TorchState, inputs: torch.Tensor, answers: Tensors, size: int
    ) -> torch.Tensor:
        """The last pass of a step: its backward part is an exchange where gradients travel beside it."""
        if state.recorded is not None:

            def share(outputs: torch.Tensor, answers: Tensors) -> torch.Tensor:
                return self._of_outputs(state, outputs, answers, size)

            return state.recorded(inputs, answers, size, share)
        if state.together.equally_often:
            self.before_exchange()
        loss = self._loss(state, inputs, answers, size)
        if state.together.beside:
            self.before_exchange()
        self._propagate(state, loss)
        return loss.detach()

    def _accumulate(
        self, state: TorchState, inputs: torch.Tensor, answers: Tensors, size: int
    ) -> torch.Tensor:
        """The share in pieces of at most ``micro_batch``: gradients add up, and are exchanged once."""
        pieces = self._pieces(state, len(inputs), size)
        total = torch.zeros((), device=self._device)
        for piece in pieces[:-1]:
            with state.together.quiet():
                loss = self._piece_loss(state, inputs, answers, size, piece)
                self._propagate(state, loss)
            total += loss.detach()
        if state.together.beside:
            self.before_exchange()
        loss = self._piece_loss(state, inputs, answers, size, pieces[-1])
        self._propagate(state, loss)
        return total + loss.detach()

    def _pieces(self, state: TorchState, count: int, size: int) -> list[slice]:
        most = state.execution.micro_batch or count
        longest = -(-size // self._world.size) if state.together.equally_often else count
        rounds = max(1, -(-longest // most))
        ends = [count * place // rounds for place in range(rounds + 1)]
        return [slice(start, end) for start, end in itertools.pairwise(ends)]

    def _piece_loss(
        self, state: TorchState, inputs: torch.Tensor, answers: Tensors, size: int, piece: slice
    ) -> torch.Tensor:
        if piece.start < piece.stop:
            return self._loss(state, inputs[piece], tuple(a[piece] for a in answers), size)
        # A pass that the other workers make, and this one has no sample left for: one without weight.
        return self._loss(state, inputs[:1], tuple(a[:1] for a in answers), size) * 0.0

    def _loss(
        self, state: TorchState, inputs: torch.Tensor, answers: Tensors, size: int
    ) -> torch.Tensor:
        """This part of the global mean loss."""
        if state.own_loss:
            if len(answers) > 1:
                raise ModelError(
                    "training_step cannot be given blends of two samples",
                    "leave mixup and cutmix out of [train.augment], or training_step out of the model",
                )
            with state.precision.forward():
                mean: torch.Tensor = state.together.runner(inputs, answers[0])
            return mean.float() * (len(inputs) / size)
        with state.precision.forward():
            outputs = state.together.runner(inputs)
        return self._of_outputs(state, outputs.float(), answers, size)

    def _of_outputs(
        self, state: TorchState, outputs: torch.Tensor, answers: Tensors, size: int
    ) -> torch.Tensor:
        losses: torch.Tensor = state.task.losses(self.ops, outputs, answers[0])
        if len(answers) > 1:  # of a blend of two, each label's loss by its share
            others = state.task.losses(self.ops, outputs, answers[1])
            losses = torch.lerp(others, losses, answers[2])
        return losses.sum() / size

    def _propagate(self, state: TorchState, loss: torch.Tensor) -> None:
        if state.together.factor != 1.0:
            loss = loss * state.together.factor
        scaler = state.precision.scaler
        scaled: torch.Tensor = loss if scaler is None else scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def _outputs(self, state: TorchState, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Where memory does not suffice for all at once, for each half by itself."""
        sharded = state.together.equally_often
        try:
            with torch.no_grad() if sharded else torch.inference_mode():
                with state.precision.forward() if sharded else contextlib.nullcontext():
                    found = state.call(self._inputs(state, inputs))
                outputs: NDArray[np.float32] = found.float().cpu().numpy()
                return outputs
        except (RuntimeError, MemoryError) as error:
            if sharded or len(inputs) < 2 or not is_out_of_memory(error):
                raise
        half = len(inputs) // 2
        return np.concatenate(
            [self._outputs(state, part) for part in (inputs[:half], inputs[half:])]
        )

    def _seed_step(self, seed: int) -> None:
        # torch.manual_seed visits every kind of device; only the one in use draws numbers.
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        """Shares memory where it may: torch warns about memory that it must not write to."""
        if not array.flags.carray:  # in order, aligned and writeable
            array = np.array(array, order="C")
        tensor = torch.from_numpy(array)
        return tensor if self._device.type == "cpu" else tensor.to(self._device, non_blocking=True)

    def _answers(self, batch: Batch) -> Tensors:
        """Targets; of blends also the other targets and the weights."""
        if batch.other_targets is None or batch.weight is None:
            return (self._tensor(batch.targets),)
        return tuple(map(self._tensor, (batch.targets, batch.other_targets, batch.weight)))

    def _inputs(self, state: TorchState, array: NDArray[Any]) -> torch.Tensor:
        """In model form, on the device. Pictures travel as bytes: a quarter of what float32 takes."""
        tensor = self._tensor(array)
        if state.execution.channels_last and tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        if tensor.dtype != torch.uint8 or state.several:
            return tensor
        if state.finish is None:
            raise ValueError("uint8 inputs need the `input` that begin() was not given")
        scale, shift = state.finish
        return tensor.to(torch.float32).mul_(scale).add_(shift)

    def _unwrap(self) -> None:
        """Let go of the wrapped models before the workers part.

        One that outlives its process group makes the interpreter's exit slow, and now and then abort.
        """
        if self._world.size > 1:
            for state in self._states:
                state.together = Alone(state.model)
            gc.collect()  # the wrapper refers to itself

    def _explain(self, error: RuntimeError | MemoryError) -> YardError:
        return explain(error, self._world, self._device)
