"""What a framework must do to be trained by Modelyard's one loop.

A backend owns a *state* (model, optimizer, whatever it compiles), opaque to everyone else. Its duties:

- ``join`` makes this process one of ``world.size`` workers (a context: it leaves at the end) and
  sets the threads and device it may use. With one worker it opens no network.
- ``seed`` fixes what the framework draws from then on; it is called before the user's function
  builds the model, so that initial weights are the same each time.
- ``begin`` builds the state from the model that the user's function returned. All workers must hold
  the same weights afterwards. It refuses a model whose output does not fit the task. Where it is
  told how the samples are made (``input``, an ``ImageInput``), ``step`` and ``evaluate`` take
  pictures as they are stored too, uint8, and finish them on the device: ``x * input.scale +
  input.shift`` a channel, in float32, after the conversion to float32.
  The losses are those of ``self.opened(task, loss)``: ``losses(self.ops, outputs, targets)``.
- ``begin`` treats weights by name as ``optimizer`` asks (``parameter_rules.py``): what is frozen has no gradient
  and no optimizer state, and is equal bit for bit in the end.
- ``step`` does one optimizer step on this worker's share of a global batch, so that the result
  equals a single process's step on the whole batch: the loss is the sum over local samples divided
  by the *global* batch size, gradients are summed over workers. With ``batch.other_targets`` the
  loss of a sample is ``weight * loss(targets) + (1 - weight) * loss(other_targets)``. Randomness (dropout) comes only
  from ``settings.seed``, so that a resumed run draws the same numbers.
- ``evaluate`` gives the outputs for a batch without changing the state. All workers call it equally
  often: with sharded weights it is an exchange.
- With ``OptimizerSettings.ema`` (of backends that say ``averages``) it keeps a moving average of the weights, as
  ``average.py`` says: ``step`` trains the weights and adds them, ``evaluate`` and ``export`` use the average, snapshots
  hold it as ``ema.<name>`` beside ``model.<name>``.
- ``reduce`` adds a small NumPy array over all workers (statistics, flags); every worker calls it.
- ``snapshot``/``restore`` give and take the training state as named arrays and plain numbers:
  nothing that would need pickle. A worker that holds only slices of some tensors gives these, and
  says where they lie (``Snapshot.parts``); ``restore`` is given whole tensors on every worker.
- ``export`` writes an ONNX file with a dynamic batch axis.

Third parties prove theirs with ``modelyard.backends.contract``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelyard.spec.errors import ModelError, TrainingError
from modelyard.spec.optimizers import NEUTRAL, default_of
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import NaturalInput, Signature
from modelyard.spec.work import World
from modelyard.tasks import open_task
from modelyard.tasks.base import Ops, Task
from modelyard.tasks.own_loss import OwnLoss, try_own_loss

State = Any


def _nothing() -> None:
    """What is done before an exchange where nobody wants to know."""


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """How steps are computed: what changes their speed and memory, and their result by rounding only.

    ``"auto"`` asks the backend to choose on this model and device; what it chose has no ``"auto"``.
    A backend refuses what it lacks with a TrainingError that says what it has.
    """

    precision: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    compile: bool | Literal["auto"] = False
    channels_last: bool | Literal["auto"] = "auto"
    """Memory order of pictures and kernels; no matter to models without convolutions."""
    linear: Literal["auto", "blas", "onednn", "mixed"] = "blas"
    """Which library computes large dense layers in training, where a backend has two of them."""
    parallel: Literal["replicate", "shard"] = "replicate"
    """``shard``: each worker keeps a slice of weights, gradients and optimizer state."""
    gradient_checkpointing: bool = False
    """Forget what the model's blocks compute and compute it again in the backward pass."""
    micro_batch: int | None = None
    """Most samples that one worker takes through the model at once; None: its whole share."""
    samples: int = 32
    """A worker's share of a batch, and with it the size that is measured."""
    steps: int = 0
    """Of the whole training: what costs more than it can save is not tried. 0: not known."""


class Lora(msgspec.Struct, frozen=True, kw_only=True):
    """Low-rank adapters are trained in place of the weights: ``W + alpha / rank * B A``, of A and B."""

    rank: int
    alpha: float
    match: tuple[str, ...] = ("*",)
    """Patterns of layers' names, or of their ends."""
    also: tuple[str, ...] = ()
    """Patterns of weights that are trained whole beside them."""


class WeightGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Weights whose names match a pattern, and how they differ from the others."""

    match: str
    lr_scale: float = 1.0
    weight_decay: float | None = None


_LATER: Any = None
"""A default that depends on the optimizer's name."""


class OptimizerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which optimizer, and how its steps are computed; the learning rate comes with each step.

    What is not given is the optimizer's own (``spec/optimizers.py``); fields that it does not
    understand hold harmless numbers.
    """

    name: str
    weight_decay: float = 0.0
    """Of weights with two axes or more; how it acts is the optimizer's matter."""
    momentum: float = _LATER
    nesterov: bool = _LATER
    betas: tuple[float, float] = _LATER
    epsilon: float = _LATER
    rho: float = _LATER
    freeze: tuple[str, ...] = ()
    """Patterns of weights that no step changes; for these four see ``parameter_rules``."""
    no_decay: tuple[str, ...] = ()
    groups: tuple[WeightGroup, ...] = ()
    layer_decay: float = 1.0
    ema: float = 0.0
    """Decay of the moving average of weights that is judged and exported; 0: there is none."""
    execution: Execution = Execution()
    lora: Lora | None = None
    """A backend that has none refuses it with a TrainingError. With it, a snapshot leaves out what is
    frozen and its numbers have ``base``, a digest of that, which ``restore`` compares."""

    def __post_init__(self) -> None:
        for field in NEUTRAL:
            if getattr(self, field) is None:
                msgspec.structs.force_setattr(self, field, default_of(self.name, field))


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """This worker's share of a global batch."""

    inputs: NDArray[Any]
    """(n, *shape): float32 in model form, or uint8 as stored where ``begin`` was given the ``input``."""
    targets: NDArray[Any]
    """(n,) int64 or float32"""
    global_size: int
    """Samples of the whole batch, over all workers."""
    other_targets: NDArray[Any] | None = None
    """(n,) as ``targets``, where samples are blends of two; with it comes ``weight``."""
    weight: NDArray[np.float32] | None = None
    """(n,) in 0 to 1: the share of ``targets`` in each sample's loss; the rest is ``other_targets``'."""


class StepSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is different at each step."""

    learning_rate: float
    seed: int
    """Already specific to run, step and rank."""
    clip_norm: float | None = None
    clip_value: float | None = None
    """Most that a number of the whole batch's gradient may be off 0; without ``clip_norm``."""
    measure_norm: bool = False
    """Give the gradient norm also where nothing is clipped; asked for a few times a second at most."""
    sample_values: bool = False
    """Give samples of weights and gradients; asked for before an evaluation, of one worker alone."""


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """Still on the device: read them (``float(...)``) only when they are reported."""

    loss: Any
    """This worker's share of the global mean loss: the shares of all workers add up to it."""
    gradient_norm: Any = None
    """Before clipping; None where neither clipping nor measuring was asked for."""
    samples: dict[str, NDArray[Any]] | None = None
    """``weights/<name>`` and ``gradients/<name>``: a few thousand values of each, where asked for. What should
    have a gradient and got none has an empty one; what is frozen has none."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker needs; sizes in bytes."""

    parameters: int
    gradients: int
    optimizer: int
    """With the weights' average, where one is kept."""
    activations: int
    """Kept from the forward for the backward pass, of one micro-batch."""
    step_seconds: float

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Where a slice that one worker holds lies in the whole tensor."""

    offset: tuple[int, ...]
    """Index of the slice's first element, one number an axis; its size is the array's own shape."""
    shape: tuple[int, ...]
    """Of the whole tensor."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A training state, or one worker's share of it; what a backend restores is always whole."""

    tensors: dict[str, NDArray[Any]]
    """``model.*`` are the weights; ``optimizer.*`` the rest."""
    numbers: dict[str, Any]
    """JSON-able; the same on all workers."""
    parts: dict[str, Part] = {}
    """For tensors of which this worker holds a slice; the others are whole and equal on all workers."""


class Weight(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of a model that has not begun yet."""

    names: tuple[str, ...]
    """As in a checkpoint; several where the model holds one tensor in several places."""
    shape: tuple[int, ...]


class Backend(ABC):
    """The contract; one file per framework in this folder."""

    name: str
    ops: Ops
    evaluation_batch: int = 256
    """Most samples that ``evaluate`` should be given at once; a backend short of memory lowers it."""
    averages: bool = False
    """It knows ``OptimizerSettings.ema``."""
    treats_by_name: bool = False
    """It knows weights by name (``freeze``, ``no_decay``, ``groups``, ``layer_decay``), and ``clip_value``."""
    adapts: bool = False
    """It knows ``OptimizerSettings.lora``."""
    recomputes: bool = False
    """It knows ``Execution.gradient_checkpointing``."""
    before_exchange: Callable[[], None] = staticmethod(_nothing)
    """Called by ``step`` when this worker's own part is done and it waits for the others."""

    @abstractmethod
    def join(self, world: World, *, device: str, threads: int) -> AbstractContextManager[str]:
        """Yields the device in use: ``cpu``, ``cuda:0``, …"""

    @abstractmethod
    def seed(self, value: int) -> None: ...

    @abstractmethod
    def begin(
        self,
        model: object,
        task: TaskSpec,
        optimizer: OptimizerSettings,
        signature: Signature,
        input: NaturalInput | None = None,  # noqa: A002
        loss: OwnLoss | None = None,
    ) -> State:
        """Raises ModelError where the model does not take ``signature.inputs`` or give ``signature.outputs``.

        ``loss`` is the user's own, where ``task.loss`` names one and something is to be trained.
        """

    def opened(self, task: TaskSpec, loss: OwnLoss | None) -> Task:
        """The task that ``begin`` was given, its own loss tried. Raises ModelError for one that cannot be trained."""
        found = open_task(task, loss)
        if loss is not None:
            try_own_loss(loss, self.ops, self.differentiate, found.output_size, len(task.classes))
        return found

    def differentiate(
        self,
        function: Callable[..., Any],
        outputs: NDArray[Any],
        targets: NDArray[Any],
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """``function(outputs, targets)`` on this framework's tensors, and the slope of its sum by the outputs.

        (n, output_size) float32, (n,) -> the function's result, (n, output_size) or None where it has
        no slope. It is for losses of the user's own; a backend that leaves it as it is takes none.
        """
        raise ModelError(
            f"the {self.name} backend cannot train with a loss of the user's own ({function})",
            "use one of task.loss' built-in losses",
        )

    @abstractmethod
    def step(
        self, state: State, batch: Batch, settings: StepSettings
    ) -> tuple[State, StepResult]: ...

    @abstractmethod
    def evaluate(self, state: State, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """(n, *shape), in a form that ``step`` takes -> (n, output_size)."""

    @abstractmethod
    def reduce(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum over all workers, the same on each."""

    @abstractmethod
    def snapshot(self, state: State) -> Snapshot:
        """A copy: later steps do not change it."""

    def view(self, state: State) -> Snapshot:
        """Like ``snapshot``, but may share the state's memory: good until the next step.

        A checkpoint's writer copies it into memory of its own. A backend that has nothing to share
        leaves this as it is.
        """
        return self.snapshot(state)

    def execution(self, state: State) -> Execution:
        """How steps are computed in the end; a backend that knows one way only leaves this as it is."""
        return Execution()

    def notes(self, state: State) -> tuple[str, ...]:
        """What people should know of how ``begin`` took the model: choices, and what was left out."""
        return ()

    def weights(self, model: object, signature: Signature) -> tuple[Weight, ...]:
        """Before ``begin``: all that ``model`` holds and a checkpoint would.

        Raises ModelError for a model that does not take ``signature.inputs``, TrainingError where this
        backend cannot start from weights.
        """
        raise TrainingError(
            f"the {self.name} backend cannot start from weights", "leave model.weights out"
        )

    def library_tensors(self, model: object, folder: Path) -> dict[str, NDArray[Any]] | None:
        """Of a library that writes files under other names than its weights have: what it reads there.

        None where names are names: for any other model or folder.
        """
        return None

    def put_weights(self, model: object, tensors: Mapping[str, NDArray[Any]]) -> object:
        """``model`` with these in place of its own, by the first of a weight's names; shapes fit."""
        raise TrainingError(
            f"the {self.name} backend cannot start from weights", "leave model.weights out"
        )

    def hold_still(self, model: object) -> bool:
        """Before ``begin``: let ``model`` be trained as it is judged, without dropout and the like.

        For a proof that another number of workers computes the same. False: this backend cannot.
        """
        return False

    def describe_device(self) -> str:
        """Its kind and memory, such that what fits into one fits into another of the same words."""
        return ""

    def estimate(self, state: State, batch: Batch) -> Estimate | None:
        """Bytes and seconds of a step on ``batch``, by doing it; None: this backend does not measure."""
        return None

    @abstractmethod
    def restore(self, state: State, snapshot: Snapshot) -> State:
        """Takes whole tensors, whatever ``snapshot`` gives. Raises ModelError where names or shapes do not fit the model."""

    def profile(self, path: Path) -> AbstractContextManager[None]:
        """Inside, this worker's steps are traced; at the end the trace is in ``path`` (Chrome's format)."""
        return nullcontext()

    def device_usage(self) -> tuple[int | None, float | None]:
        """Of this process's accelerator: peak bytes, and the share of the time it is busy; None: unknown."""
        return None, None

    @abstractmethod
    def export(self, state: State, path: Path, signature: Signature) -> None:
        """Write ONNX; raises ExportError naming the operator that cannot be expressed."""
