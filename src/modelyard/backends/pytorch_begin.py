"""From the user's model to a PyTorch training state: checked, laid out, made equal, wrapped, compiled."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from msgspec.structs import replace
from torch import nn

from modelyard.backends.base import Execution, OptimizerSettings, Snapshot
from modelyard.backends.pytorch_average import TorchAverage
from modelyard.backends.pytorch_check import check_model
from modelyard.backends.pytorch_guests import Guest, take_in
from modelyard.backends.pytorch_input import given_form, taken_apart
from modelyard.backends.pytorch_kernels import kernels_of
from modelyard.backends.pytorch_lora import Adapted, add_adapters
from modelyard.backends.pytorch_optimizer import Update, make_optimizer, treat
from modelyard.backends.pytorch_parallel import Alone, Beside, Gathered, Sharded, make_equal
from modelyard.backends.pytorch_precision import (
    Precision,
    check_precision,
    order_weights,
)
from modelyard.backends.pytorch_recompute import recompute_blocks
from modelyard.backends.pytorch_recorded import Recorded, recordable
from modelyard.backends.pytorch_tune import Reduce, Subject, compiled, settle, warm_up
from modelyard.spec.errors import ModelError
from modelyard.spec.signature import ImageInput, NaturalInput, Signature
from modelyard.spec.work import World
from modelyard.tasks.base import Task
from modelyard.tasks.parts import parts_of


@dataclass(eq=False)
class TorchState:
    """What ``step`` changes in place: torch's own objects."""

    model: nn.Module
    """The user's own: its names are those of a checkpoint."""
    call: nn.Module
    """The model, or what a guest is called through."""
    together: Alone
    """How a step calls it and what the workers exchange."""
    optimizer: torch.optim.Optimizer
    update: Update
    settings: OptimizerSettings
    execution: Execution
    precision: Precision
    task: Task
    parameters: tuple[nn.Parameter, ...]
    notes: tuple[str, ...]
    finish: tuple[torch.Tensor, torch.Tensor] | None
    """Scale and shift that make model form from pictures as they are stored."""
    several: bool = False
    """Samples have several parts: ``call`` takes their rows of bytes apart."""
    adapted: Adapted | None = None
    """Of a model with adapters: what a snapshot of it holds."""
    outline: nn.Module | None = None
    """Of a sharded model: what its weights are gathered into for an export."""
    average: TorchAverage | None = field(init=False)
    """Of the weights, where it was asked for."""
    recorded: Recorded | None = field(init=False)
    """Both passes of a model whose steps are always alike."""
    kernels: AbstractContextManager[None] = field(init=False)
    """Around a step: other kernels than torch would take by itself."""

    def __post_init__(self) -> None:
        ema = self.settings.ema
        self.average = TorchAverage(self.model, ema) if ema else None
        plain = self.call is self.model and self.task.own_loss is None
        alike = plain and recordable(self.model, self.parameters, self.execution)
        self.recorded = Recorded(self.model, self.parameters) if alike else None
        self.kernels = kernels_of(self.model, self.execution)

    @property
    def held(self) -> tuple[nn.Module, torch.optim.Optimizer, str, frozenset[str] | None]:
        """What a snapshot is made of, with the weights that steps change in place."""
        if self.average is not None:
            self.average.hide()
        only = None if self.adapted is None else self.adapted.names
        return self.model, self.optimizer, self.settings.name, only

    def whole(self, snapshot: Snapshot, *, copy: bool) -> Snapshot:
        """``snapshot``, made of what is ``held``, with what else belongs to the state."""
        numbers: dict[str, Any] = self.precision.numbers()
        if self.adapted is not None:
            numbers |= self.adapted.numbers()
        if numbers:
            snapshot = replace(snapshot, numbers={**snapshot.numbers, **numbers})
        return snapshot if self.average is None else self.average.into(snapshot, copy=copy)

    @property
    def judged(self) -> nn.Module:
        """The model, with the weights' average in place where one is kept."""
        if self.average is not None:
            self.average.show()
        return self.model

    @property
    def own_loss(self) -> bool:
        return isinstance(self.call, Guest) and self.call.own_loss is not None


def begin_training(
    model: object,
    task: Task,
    settings: OptimizerSettings,
    signature: Signature,
    spec: NaturalInput | None,
    *,
    world: World,
    device: torch.device,
    reduce: Reduce,
) -> TorchState:
    """Raises ModelError for a model that does not fit, TrainingError for an execution that cannot be."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"the model's function returned a {type(model).__qualname__}, not a torch.nn.Module",
            "return the model itself",
        )
    check_precision(settings.execution, device)
    call, notes = _called(model.to(device), settings)
    parts = parts_of(signature, spec)
    call = taken_apart(call, model, parts)
    unused = check_model(model, call, task.output_size, signature, parts, device)
    treated = treat(model, settings)  # layers that wait for their first input have weights by now
    if world.size > 1:
        make_equal(model)
    subject = Subject(model, call, *given_form(signature, parts), device, reduce)
    execution, measured = settle(_wanted(settings, world), subject)
    if execution.parallel == "replicate":
        order_weights(model, channels_last=execution.channels_last is True)
    adapted = None if settings.lora is None else Adapted.of(model)
    precision = Precision(execution.precision, device)
    outline = _shard(model, call, execution, precision, device, world)
    parameters = tuple(p for p in model.parameters() if p.requires_grad)
    optimizer = make_optimizer(model, settings, treated)
    model.train()
    state = TorchState(
        model=model,
        call=call,
        together=_together(model, call, parameters, execution, unused, world, device),
        optimizer=optimizer,
        update=Update(optimizer),
        settings=settings,
        execution=execution,
        precision=precision,
        task=task,
        parameters=parameters,
        notes=(*notes, *measured),
        finish=_finish(spec, device),
        several=bool(parts),
        adapted=adapted,
        outline=outline,
    )
    if execution.compile:
        warm_up(state.together.runner, execution, subject)
    return state


def _wanted(settings: OptimizerSettings, world: World) -> Execution:
    if world.size == 1:  # there is nobody to share slices with
        return replace(settings.execution, parallel="replicate")
    return settings.execution


def _called(model: nn.Module, settings: OptimizerSettings) -> tuple[nn.Module, tuple[str, ...]]:
    """What to call for ``model``, with adapters in it where they are asked for, and notes for people."""
    call, notes = take_in(model)
    if settings.lora is not None:
        notes = (*notes, add_adapters(model, settings.lora))
    if settings.execution.gradient_checkpointing:
        notes = (*notes, recompute_blocks(model))
    return call, notes


def _shard(
    model: nn.Module,
    call: nn.Module,
    execution: Execution,
    precision: Precision,
    device: torch.device,
    world: World,
) -> nn.Module | None:
    if execution.parallel != "shard":
        return None
    from modelyard.backends.pytorch_shard import outline, shard_model  # slow to import

    empty = outline(model)
    methods = ["training_step"] if isinstance(call, Guest) and call.own_loss else []
    shard_model(model, device, world.size, precision.dtype, methods)
    return empty


def _together(
    model: nn.Module,
    call: nn.Module,
    parameters: tuple[nn.Parameter, ...],
    execution: Execution,
    unused: bool,
    world: World,
    device: torch.device,
) -> Alone:
    compile_it = execution.compile is True
    runner: Any = compiled(call) if compile_it else call
    if world.size == 1:
        return Alone(runner)
    if execution.parallel == "shard":
        return Sharded(runner, model, size=world.size)
    one_kind = len({parameter.dtype for parameter in parameters}) == 1
    if device.type == "cpu" and one_kind:
        return Gathered(runner, model, parameters)
    return Beside(call, model, size=world.size, unused=unused, compiled=compile_it)


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
