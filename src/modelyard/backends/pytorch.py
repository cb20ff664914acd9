"""PyTorch: eager steps in one process, distributed data parallel over gloo or nccl in several."""

import contextlib
import gc
import inspect
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from modelyard.backends.base import (
    Backend,
    Batch,
    OptimizerSettings,
    Snapshot,
    StepResult,
    StepSettings,
)
from modelyard.backends.pytorch_look import device_usage, gradient_norm, profiled, sampled_values
from modelyard.backends.pytorch_models import input_type
from modelyard.backends.pytorch_state import restore_state, snapshot_state, view_state
from modelyard.backends.pytorch_workers import choose_device, join_workers
from modelyard.spec.errors import ModelError, TrainingError, YardError
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import ImageInput, NaturalInput, Signature
from modelyard.spec.work import World
from modelyard.tasks import open_task
from modelyard.tasks.base import Task

_ALONE = World(rank=0, size=1, rendezvous="")
# Newer releases of torch renamed the argument and warn about the old name.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


class TorchOps:
    """The maths of losses, on torch tensors."""

    log_softmax = staticmethod(lambda x: torch.log_softmax(x, dim=-1))
    log_sigmoid = staticmethod(nn.functional.logsigmoid)
    square = staticmethod(torch.square)
    mean_last = staticmethod(lambda x: x.mean(dim=-1))
    reshape = staticmethod(torch.reshape)

    @staticmethod
    def take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return x.gather(-1, index.unsqueeze(-1)).squeeze(-1)


@dataclass(eq=False)
class _State:
    """What ``step`` changes in place: torch's own objects."""

    model: nn.Module
    runner: nn.Module
    """The model, or the model wrapped so that its gradients are summed over workers."""
    optimizer: torch.optim.Optimizer
    settings: OptimizerSettings
    task: Task
    parameters: tuple[nn.Parameter, ...]
    statistics: tuple[torch.Tensor, ...]
    """Running means and variances, which workers must keep equal."""
    finish: tuple[torch.Tensor, torch.Tensor] | None = None
    """Scale and shift that make model form from pictures as they are stored."""


class PyTorch(Backend):
    """See the contract in ``base.py``; one object belongs to one process."""

    name = "pytorch"
    ops = TorchOps()

    def __init__(self) -> None:
        self._world = _ALONE
        self._device = torch.device("cpu")
        self._states: weakref.WeakSet[_State] = weakref.WeakSet()

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
    ) -> _State:
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"the model's function returned a {type(model).__qualname__}, not a torch.nn.Module",
                "return the model itself",
            )
        opened = open_task(task)
        model = model.to(self._device)
        unused = _check_model(model, opened.output_size, signature, self._device)
        parameters = tuple(p for p in model.parameters() if p.requires_grad)
        model.train()
        state = _State(
            model=model,
            runner=self._wrap(model, unused),
            optimizer=_optimizer(parameters, optimizer),
            settings=optimizer,
            task=opened,
            parameters=parameters,
            statistics=tuple(_running_statistics(model)) if self._world.size > 1 else (),
            finish=_finish(input, self._device),
        )
        self._states.add(state)
        return state

    def step(
        self, state: _State, batch: Batch, settings: StepSettings
    ) -> tuple[_State, StepResult]:
        """Raises TrainingError where another worker was lost, ModelError where the model raises."""
        try:
            return state, self._step(state, batch, settings)
        except RuntimeError as error:
            raise self._explain(error) from error

    def evaluate(self, state: _State, inputs: NDArray[Any]) -> NDArray[np.float32]:
        state.model.eval()
        try:
            with torch.inference_mode():
                outputs: NDArray[np.float32] = (
                    state.model(self._inputs(state, inputs)).cpu().numpy()
                )
        except RuntimeError as error:
            raise self._explain(error) from error
        finally:
            state.model.train()
        return outputs

    def reduce(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.array(values, dtype=np.float64)
        if self._world.size == 1:
            return total
        tensor = torch.from_numpy(total).to(self._device)
        try:
            torch.distributed.all_reduce(tensor)
        except RuntimeError as error:
            raise self._explain(error) from error
        result: NDArray[np.float64] = tensor.cpu().numpy()
        return result

    def snapshot(self, state: _State) -> Snapshot:
        return snapshot_state(state.model, state.optimizer, state.settings.name)

    def view(self, state: _State) -> Snapshot:
        return view_state(state.model, state.optimizer, state.settings.name)

    def restore(self, state: _State, snapshot: Snapshot) -> _State:
        restore_state(state.model, state.optimizer, state.settings.name, snapshot)
        return state

    def export(self, state: _State, path: Path, signature: Signature) -> None:
        # Only here: a worker that trains need not wait for onnx to be imported.
        from modelyard.backends.pytorch_export import export_onnx

        export_onnx(state.model, path, signature)

    def profile(self, path: Path) -> contextlib.AbstractContextManager[None]:
        return profiled(path, self._device)

    def device_usage(self) -> tuple[int | None, float | None]:
        return device_usage(self._device)

    def _step(self, state: _State, batch: Batch, settings: StepSettings) -> StepResult:
        self._seed_step(settings.seed)
        outputs = state.runner(self._inputs(state, batch.inputs))
        loss: Any = self._losses(state.task, outputs, batch).sum() / batch.global_size
        # DDP divides the summed gradients by the number of workers; this loss is already a share.
        (loss * self._world.size if self._world.size > 1 else loss).backward()
        norm = None
        if settings.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(state.parameters, settings.clip_norm)
        elif settings.measure_norm:
            norm = gradient_norm(state.parameters)
        samples = sampled_values(state.model) if settings.sample_values else None
        for group in state.optimizer.param_groups:
            group["lr"] = settings.learning_rate
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if state.statistics:
            _average(state.statistics, len(batch.targets) / batch.global_size)
        return StepResult(loss=loss.detach(), gradient_norm=norm, samples=samples)

    def _losses(self, task: Task, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """One for each sample; of a blend of two, each label's by its share."""
        losses: torch.Tensor = task.loss(self.ops, outputs, self._tensor(batch.targets))
        if batch.other_targets is None or batch.weight is None:
            return losses
        others = task.loss(self.ops, outputs, self._tensor(batch.other_targets))
        return torch.lerp(others, losses, self._tensor(batch.weight))

    def _seed_step(self, seed: int) -> None:
        # torch.manual_seed visits every kind of device; only the one in use draws numbers.
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        """Shares memory where it may: torch warns about memory that it must not write to."""
        if not (array.flags.writeable and array.flags.c_contiguous):
            array = np.array(array, order="C")
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def _inputs(self, state: _State, array: NDArray[Any]) -> torch.Tensor:
        """In model form, on the device. Pictures travel as bytes: a quarter of what float32 takes."""
        tensor = self._tensor(array)
        if tensor.dtype != torch.uint8:
            return tensor
        if state.finish is None:
            raise ValueError("uint8 inputs need the `input` that begin() was not given")
        scale, shift = state.finish
        return tensor.to(torch.float32).mul_(scale).add_(shift)

    def _wrap(self, model: nn.Module, unused: bool) -> nn.Module:
        if self._world.size == 1:
            return model
        others = len(list(model.buffers())) > len(_running_statistics(model, all_buffers=True))
        buffers: dict[str, Any] = {_SYNC_BUFFERS: others}
        return DistributedDataParallel(
            model,
            gradient_as_bucket_view=True,
            find_unused_parameters=unused,
            **buffers,
        )

    def _unwrap(self) -> None:
        """Let go of the wrapped models before the workers part.

        One that outlives its process group makes the interpreter's exit slow, and now and then abort.
        """
        if self._world.size > 1:
            for state in self._states:
                state.runner, state.statistics = state.model, ()
            gc.collect()  # the wrapper refers to itself

    def _explain(self, error: RuntimeError) -> YardError:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            return TrainingError(
                f"out of memory on {self._device}: {reason}",
                "use a smaller train.batch_size, more train.workers or a smaller model",
            )
        if self._world.size > 1 and _from_network(error):
            return TrainingError(
                f"worker {self._world.rank} of {self._world.size} lost another worker: {reason}",
                "the log of the worker that ended first says why",
            )
        return ModelError(
            f"the model raised {reason}", "run `yard check`, which tries the model on a real batch"
        )


def _from_network(error: RuntimeError) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    text = str(error).lower()
    return any(word in text for word in ("gloo", "nccl", "connection", "socket", "timed out"))


def _check_model(
    model: nn.Module, output_size: int, signature: Signature, device: torch.device
) -> bool:
    """Refuse a model that does not fit; True where some parameters get no gradient from the output."""
    shape = (2, *(size or 1 for size in signature.inputs[0].shape[1:]))
    try:
        model.eval()
        outputs = model(torch.zeros(shape, dtype=input_type(signature), device=device))
    except Exception as error:
        raise ModelError(
            f"the model cannot take an input of shape {shape} (batch first): {type(error).__name__}: {error}",
            "make its first layers fit that shape",
        ) from error
    if not isinstance(outputs, torch.Tensor):
        raise ModelError(
            f"the model returned a {type(outputs).__qualname__}, not one tensor of shape (2, {output_size})",
            "return only the tensor with the outputs from forward",
        )
    if tuple(outputs.shape) != (2, output_size) or outputs.dtype != torch.float32:
        raise ModelError(
            f"for an input of shape {shape} the model gave {_describe(outputs)}; "
            f"this task needs float32 of shape (2, {output_size})",
            f"the last layer must have {output_size} output{'s' if output_size != 1 else ''}"
            if outputs.dtype == torch.float32
            else "return float32, e.g. `.float()`",
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained or not outputs.requires_grad:
        raise ModelError(
            "the model has nothing to train: its output depends on no parameter with requires_grad",
            "unfreeze at least the last layer",
        )
    gradients = torch.autograd.grad(outputs.sum(), trained, allow_unused=True)
    return any(gradient is None for gradient in gradients)


def _finish(
    spec: NaturalInput | None, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Scale and shift of each channel, (channels, 1, 1), where samples are pictures."""
    if not isinstance(spec, ImageInput):
        return None
    scale, shift = (
        torch.tensor(values, dtype=torch.float32, device=device).reshape(-1, 1, 1)
        for values in (spec.scale, spec.shift)
    )
    return scale, shift


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _optimizer(
    parameters: tuple[nn.Parameter, ...], settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """Decay only for matrices and kernels: norms and biases have fewer than two axes."""
    decayed = [p for p in parameters if p.ndim >= 2]
    plain = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": members, "weight_decay": decay}
        for members, decay in ((decayed, settings.weight_decay), (plain, 0.0))
        if members
    ]
    match settings.name:
        case "sgd":
            return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum, fused=True)
        case "adam":
            for group in groups:
                group["weight_decay"] = 0.0  # as the project file says: adamw and sgd only
            return torch.optim.Adam(groups, lr=0.0, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=0.0, fused=True)
    raise TrainingError(
        f"the pytorch backend has no optimizer {settings.name!r}", "use sgd, adam or adamw"
    )


def _running_statistics(model: nn.Module, *, all_buffers: bool = False) -> list[torch.Tensor]:
    """Batch norms' means and variances (with ``all_buffers``, their counters too)."""
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase))
    return [b for norm in norms for b in norm.buffers() if all_buffers or b.is_floating_point()]


def _average(statistics: tuple[torch.Tensor, ...], share: float) -> None:
    """The mean over workers, weighted by their share of the batch, so that all stay equal.

    A running mean is then exactly what one process would have; a running variance leaves out the
    spread between the workers' means, as in every data-parallel training without synchronised norms.
    """
    flat = torch.cat([tensor.flatten() for tensor in statistics]) * share
    torch.distributed.all_reduce(flat)
    sizes = [tensor.numel() for tensor in statistics]
    for tensor, part in zip(statistics, torch.split(flat, sizes), strict=True):
        tensor.copy_(part.view_as(tensor))
