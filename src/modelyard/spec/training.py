"""What can be asked for under ``[train]`` in ``yard.toml``."""

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from modelyard.spec.duration import Duration
from modelyard.spec.schedules import SCHEDULES, WARMUP, WARMUP_OF_OTHERS
from modelyard.spec.section import Fraction, Section
from modelyard.spec.worker_count import WorkerCount, limits


class WeightGroup(Section):
    """Weights that are treated in a way of their own; of several groups that match, the first counts."""

    match: str = Field(description='Pattern of the weights\' names, e.g. "head.*".')
    lr_scale: PositiveFloat = Field(1.0, description="Factor of the learning rate.")
    weight_decay: float | None = Field(
        None,
        ge=0,
        description="In place of the optimizer's; not applied to norms and biases either.",
    )


class OptimizerSection(Section):
    """Fields left out are the optimizer's own: see ``optimizers.py``."""

    name: Literal["sgd", "adam", "adamw", "rmsprop", "adagrad", "lion"] = "adamw"
    lr: PositiveFloat = Field(1e-3, description="Peak learning rate.")
    weight_decay: float | None = Field(
        None,
        ge=0,
        description="Pulls weights towards 0; not applied to norms and biases. "
        "None given: 0.01 for adamw, sgd and lion, else 0.",
    )
    momentum: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="sgd (0.9) and rmsprop (0): share of the last step that is kept.",
    )
    nesterov: bool | None = Field(
        None, description="sgd (false): look ahead, by Nesterov's form of momentum."
    )
    betas: tuple[Fraction, Fraction] | None = Field(
        None,
        description="adam, adamw ([0.9, 0.999]) and lion ([0.9, 0.99]): how slowly the two averages of the gradients move.",
    )
    epsilon: PositiveFloat | None = Field(
        None,
        description="adam, adamw, rmsprop (1e-8) and adagrad (1e-10): keeps the division by small gradients finite.",
    )
    rho: Fraction | None = Field(
        None, description="rmsprop (0.99): how slowly the average of squared gradients moves."
    )
    no_decay: tuple[str, ...] = Field(
        (), description="Patterns of weights without decay, beside norms and biases."
    )
    groups: tuple[WeightGroup, ...] = Field(
        (), description="[[train.optimizer.groups]]: weights with a rate or a decay of their own."
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Layer-wise learning rates: factor from each layer to the one before it; the last one has the whole rate.",
    )


class ScheduleSection(Section):
    """Fields left out are the schedule's own: see ``schedules.py``."""

    name: Literal["constant", "linear", "cosine", "step", "exponential", "one-cycle", "plateau"] = (
        "cosine"
    )
    warmup: Fraction | None = Field(
        None,
        description="Share of all steps in which the learning rate rises. None given: 0.05; one-cycle 0.3.",
    )
    floor: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Lowest learning rate, as a share of the peak; linear, cosine and one-cycle end there.",
    )
    gamma: float | None = Field(
        None,
        gt=0,
        le=1,
        description="step (0.1): factor at each drop; exponential (0.9): factor of each epoch.",
    )
    every: PositiveFloat | None = Field(
        None, description="step: epochs from one drop to the next; or give milestones."
    )
    milestones: tuple[PositiveFloat, ...] = Field(
        (), description="step: epochs after which the rate drops, e.g. [30, 60, 80]."
    )
    start: float | None = Field(
        None,
        gt=0,
        le=1,
        description="one-cycle (0.04): first learning rate, as a share of the peak.",
    )
    factor: float | None = Field(
        None, gt=0, lt=1, description="plateau (0.1): factor of each reduction."
    )
    patience: PositiveInt | None = Field(
        None,
        description="plateau (3): evaluations without an improvement of train.metric before a reduction.",
    )
    min_delta: float | None = Field(
        None, ge=0, description="plateau (0): what counts as an improvement."
    )

    def said(self, field: str) -> Any:
        """What the project gives for ``field``, else this schedule's own."""
        if field == "warmup":
            own: Any = WARMUP.get(self.name, WARMUP_OF_OTHERS)
        else:
            own = SCHEDULES[self.name].get(field)
        value = getattr(self, field)
        return own if value is None else value


class StoppingSection(Section):
    """Ends a training whose ``train.metric`` improves no more."""

    patience: PositiveInt = Field(
        description="Evaluations without improvement before training stops."
    )
    min_delta: float = Field(0.0, ge=0, description="What counts as an improvement.")


class AugmentSection(Section):
    """How training samples are varied; each in its own way in each epoch, the same after a resume."""

    flip: float = Field(
        0.0, ge=0, le=1, description="Images: probability of being mirrored, left for right."
    )
    crop: int = Field(
        0,
        ge=0,
        description="Images: pixels of border that are added, before a crop at a random place back to size.",
    )
    color: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Images: brightness, contrast and saturation are each multiplied by 1 ± up to this.",
    )
    mixup: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Classes: blends pairs of samples and their labels; alpha of the Beta distribution of the shares, e.g. 0.2.",
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        le=100,
        description="Images with classes: pastes a box of another image, with its share of the label; alpha, e.g. 1.0.",
    )
    noise: float = Field(
        0.0,
        ge=0,
        description="Tables and arrays: noise on each number, in its standard deviations, e.g. 0.1.",
    )
    mask: Fraction = Field(
        0.0,
        description="Tables and arrays: probability that a value is taken for missing (in arrays: for the mean).",
    )


class LoraSection(Section):
    """Low-rank adapters: ``W + alpha / rank * B A``, of which A and B are trained and W is not."""

    rank: PositiveInt = Field(8, description="Rows of A, columns of B: how much can be learnt.")
    alpha: PositiveFloat = Field(16, description="What the adapters count, over the rank.")
    match: list[str] = Field(
        ["*"],
        min_length=1,
        description='Layers that are adapted: names, or patterns of names or of their ends, e.g. ["attn.*"].',
    )
    also: list[str] = Field(
        [],
        description="Weights that are trained whole beside them, by the same patterns; "
        "those of model.fresh are anyway.",
    )


class TrainSection(Section):
    epochs: PositiveFloat = Field(
        10, description="Passes over the training split; may be a fraction."
    )
    batch_size: PositiveInt = Field(
        32, description="Global: the same whatever the number of workers."
    )
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    freeze: tuple[str, ...] = Field(
        (), description='Patterns of weights that stay as they are, e.g. ["backbone.*"].'
    )
    clip_norm: PositiveFloat | None = Field(
        None, description="Largest norm of all gradients together; none: no clipping."
    )
    clip_value: PositiveFloat | None = Field(
        None, description="Largest size of each number in a gradient; in place of clip_norm."
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of a moving average of the weights, e.g. 0.999: it is what is evaluated, kept as the "
        "best and exported, while the weights themselves are trained. 0: none.",
    )
    augment: AugmentSection = AugmentSection()
    early_stopping: StoppingSection | None = None
    metric: str = Field(
        "loss",
        description='Validation metric that chooses the best checkpoint: "loss", "accuracy", …',
    )
    workers: WorkerCount = Field(
        1,
        description='Processes that train together: a number, or "1:4" for as many of these as there is room for.',
    )
    engine: str = Field("local", description="Where the workers run.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU for each worker where there is one."
    )
    precision: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "float32",
        description="Numbers that the forward and backward pass compute in; weights stay float32. "
        "float16 scales its gradients. auto: measured on this model and device when training begins.",
    )
    compile: bool | Literal["auto"] = Field(
        False,
        description="Compile the model. auto: where that is measured to be faster, and the training "
        "takes more than a minute.",
    )
    channels_last: bool | Literal["auto"] = Field(
        "auto",
        description="Keep a pixel's channels side by side. auto: for convolutional models, measured "
        "where precision or compile is auto.",
    )
    linear: Literal["auto", "blas", "onednn", "mixed"] = Field(
        "auto",
        description="Which library computes large dense layers of a float32 step on a CPU; they differ by "
        "rounding. mixed: oneDNN, but BLAS for the gradients of weights. auto: measured when training begins.",
    )
    parallel: Literal["replicate", "shard"] = Field(
        "replicate",
        description="replicate: each worker holds the whole model. shard: each holds a slice of "
        "weights, gradients and optimizer state, for models that do not fit otherwise.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Keep of each block of the model its input only, and compute the rest again in the backward pass: "
        "less memory, about a third more time, the same numbers.",
    )
    micro_batch: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="Most samples that a worker takes through the model at once; the gradients of "
        "the pieces add up to those of the batch. auto: its whole share, and half of that each time "
        "memory runs out, which is remembered for this device.",
    )
    lora: LoraSection | None = Field(
        None,
        description="Train low-rank adapters and leave the weights as they are; an export has both in one.",
    )
    seed: int = Field(0, ge=0, description="Seed of initial weights, order of samples and dropout.")
    evaluate_every: PositiveFloat = Field(
        1, description="Epochs between two evaluations (and checkpoints)."
    )
    checkpoint_seconds: PositiveFloat = Field(
        30, description="A checkpoint is also taken after this long."
    )
    keep: PositiveInt = Field(
        2, description="How many of the last checkpoints are kept, beside the best."
    )
    keep_best: PositiveInt = Field(
        1, description="How many of the best checkpoints, by train.metric, are kept."
    )
    max_restarts: int = Field(
        3,
        ge=0,
        description="How often lost workers are replaced before training gives up; a new checkpoint counts anew.",
    )
    on_nan: Literal["skip", "stop"] = Field(
        "skip",
        description="Where a loss or gradient is no finite number. skip: back to the last checkpoint, and on "
        "without that batch, which is told. stop: an error.",
    )
    max_skips: PositiveInt = Field(
        3,
        description="on_nan = skip: how many batches of a run are left out before it is an error.",
    )
    hang_seconds: PositiveFloat = Field(
        60,
        description="A worker that keeps the others waiting for so long is named, with what it is doing, and replaced.",
    )
    profile: bool = Field(
        False,
        description="Trace ten warm steps of worker 0 into the run's folder profile/, for Perfetto "
        "or TensorBoard.",
    )
    max_time: Duration | None = Field(
        None,
        description='Budget: "90m", "2h30m", "45s" or seconds, over all attempts; then training ends '
        "with a checkpoint and a result. Raise it and the same command goes on.",
    )
    max_steps: PositiveInt | None = Field(
        None, description="Budget: optimizer steps. The schedule stays that of all epochs."
    )
    max_cost: PositiveFloat | None = Field(
        None,
        allow_inf_nan=False,
        description="Budget: money, in the currency of price_per_worker_hour.",
    )
    price_per_worker_hour: PositiveFloat | None = Field(
        None,
        allow_inf_nan=False,
        description="What an hour of one worker costs; with it a run says what it has cost.",
    )

    @property
    def fewest_workers(self) -> int:
        return limits(self.workers)[0]

    @property
    def most_workers(self) -> int:
        return limits(self.workers)[1]
