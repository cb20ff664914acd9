"""What can be asked for: the typed content of ``yard.toml``, section by section."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from modelyard.spec.duration import Duration
from modelyard.spec.worker_count import WorkerCount, limits

Fraction = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""Lower-case letters, digits and hyphens: it becomes a host name, a metric label and an OCI tag."""


class Section(BaseModel):
    """A section of the project file: frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProjectSection(Section):
    name: Name = Field(description="Name of the project, of its model and of its service.")
    description: str = Field("", description="What the model is for; printed on the model card.")


class SplitSection(Section):
    validation: Fraction = Field(
        0.15, description="Share of samples for choosing the best checkpoint."
    )
    test: Fraction = Field(0.15, description="Share of samples that training never sees.")
    seed: int = Field(0, description="Another seed gives another split.")


class DataSection(Section):
    source: str = Field(
        description='"images", "csv", "parquet", "arrow", "jsonl", "npz", "text", '
        'or "module:function" that returns arrays.'
    )
    path: str = Field(
        "",
        description="Folder or file of the source, relative to the project file; or a URL "
        "(s3://bucket/folder, https://…), with credentials from the environment only.",
    )
    target: str = Field(
        "label",
        description="Tables: the column to predict; npz: the array of targets; "
        "for images the folder's name is the label.",
    )
    split: SplitSection = SplitSection()
    size: tuple[PositiveInt, PositiveInt] = Field(
        (32, 32), description="Images: height and width they are resized to."
    )
    color: Literal["rgb", "grey"] = Field("rgb", description="Images: what they are converted to.")
    columns: dict[str, Literal["numeric", "categorical", "boolean", "ignore"]] = Field(
        {}, description='Tables: the kind of a column where the guess is wrong, or "ignore".'
    )
    text: str = Field(
        "",
        description="csv, jsonl, parquet, arrow: the column whose text is the whole input; "
        'the source "text" needs none.',
    )
    tokens: Literal["words", "bytes"] = Field(
        "words",
        description="Texts: what a token is. Words are those of the training split; bytes suit any language.",
    )
    length: PositiveInt = Field(
        128, description="Texts: tokens of a sample; longer texts are cut, shorter ones filled up."
    )
    vocabulary: Annotated[int, Field(ge=3)] = Field(
        20_000, description="Texts of words: how many are told apart, the most frequent ones."
    )
    max_unreadable: Fraction = Field(
        0.0,
        description="Share of unreadable samples (files, lines, rows of damaged shards) that is accepted "
        "and reported; more of them stop the run.",
    )
    cache_gb: PositiveFloat = Field(
        10,
        description="URLs: most gigabytes of fetched files that are kept in the store; "
        "those not used for longest go first.",
    )
    missing_target: Literal["error", "drop"] = Field(
        "error", description="Tables: what to do with rows without a label."
    )


class TaskSection(Section):
    type: str = Field("classification", description='"classification" or "regression".')
    loss: Literal["auto", "cross-entropy", "binary-cross-entropy", "mean-squared-error"] = Field(
        "auto",
        description="auto: cross-entropy for classification, mean-squared-error for regression.",
    )


class ModelSection(Section):
    build: str = Field(
        description='"module:function" that returns a model, or a built-in: "cnn-small", "mlp", "text-small".'
    )
    args: dict[str, Any] = Field({}, description="Keyword arguments for the function.")


class OptimizerSection(Section):
    name: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: PositiveFloat = Field(1e-3, description="Peak learning rate.")
    weight_decay: float = Field(
        0.01, ge=0, description="Not applied to norms and biases; adamw and sgd only."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only.")


class ScheduleSection(Section):
    name: Literal["cosine", "constant"] = "cosine"
    warmup: Fraction = Field(
        0.05, description="Share of all steps in which the learning rate rises from 0."
    )
    floor: float = Field(
        0.0, ge=0, le=1, description="cosine: the last learning rate as a share of the peak."
    )


class StoppingSection(Section):
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


class TrainSection(Section):
    epochs: PositiveFloat = Field(
        10, description="Passes over the training split; may be a fraction."
    )
    batch_size: PositiveInt = Field(
        32, description="Global: the same whatever the number of workers."
    )
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    clip_norm: PositiveFloat | None = Field(
        None, description="Largest gradient norm; none: no clipping."
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
    linear: Literal["auto", "blas", "onednn"] = Field(
        "auto",
        description="Which library computes large dense layers of a float32 step on a CPU; they differ by "
        "rounding. auto: measured when training begins (on the AMD processor tried, onednn was about twice as fast).",
    )
    parallel: Literal["replicate", "shard"] = Field(
        "replicate",
        description="replicate: each worker holds the whole model. shard: each holds a slice of "
        "weights, gradients and optimizer state, for models that do not fit otherwise.",
    )
    micro_batch: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="Most samples that a worker takes through the model at once; the gradients of "
        "the pieces add up to those of the batch. auto: its whole share, and half of that each time "
        "memory runs out, which is remembered for this device.",
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


class SearchSpace(Section):
    low: float | None = None
    high: float | None = None
    log: bool = False
    integer: bool = False
    choices: list[Any] | None = None


class TuneSection(Section):
    trials: PositiveInt = Field(20, description="How many trainings to try.")
    metric: str = Field("", description="Validation metric to improve; default: train.metric.")
    seed: int = 0
    space: dict[str, SearchSpace] = Field(
        {}, description="Field to search: { low, high, log } or { choices }."
    )


class ServeSection(Section):
    protocols: list[str] = Field(
        ["rest"], description='"rest": Open Inference Protocol v2 and POST /predict.'
    )
    host: str = Field(
        "127.0.0.1", description="Address to listen on; 0.0.0.0 opens the service to the network."
    )
    port: int = Field(8080, ge=1, le=65535)
    max_batch: PositiveInt = Field(64, description="Most samples that are inferred together.")
    max_request_mb: PositiveFloat = Field(32, description="Larger requests are refused (413).")
    timeout_seconds: PositiveFloat = Field(
        30, description="A request that takes longer is refused (504)."
    )


class DeploySection(Section):
    target: str = Field("local", description='Where the service runs: "local".')
    replicas: Annotated[int, Field(ge=1, le=64)] = 2


class DriftSection(Section):
    threshold: PositiveFloat = Field(
        0.2, description="Distance from the training data that counts as drift."
    )


class MonitorSection(Section):
    """Read and kept; nothing acts on it yet (the files for Prometheus and Grafana are always written)."""

    drift: DriftSection = DriftSection()
    on_breach: Literal["report", "retrain"] = "report"


class TrackSection(Section):
    mlflow: str = Field(
        "",
        description="MLflow store that trainings are also written to: http://…, sqlite:///mlflow.db, "
        "file:mlruns; relative to the project file. Default: MLFLOW_TRACKING_URI, if set.",
    )


class StoreSection(Section):
    url: str = Field(".yard", description="Folder of the store, relative to the project file.")


class ProjectFile(Section):
    """The whole of ``yard.toml``."""

    project: ProjectSection
    data: DataSection
    task: TaskSection = TaskSection()
    model: ModelSection
    train: TrainSection = TrainSection()
    tune: TuneSection = TuneSection()
    serve: ServeSection = ServeSection()
    deploy: DeploySection = DeploySection()
    monitor: MonitorSection = MonitorSection()
    track: TrackSection = TrackSection()
    store: StoreSection = StoreSection()


class Project(ProjectFile):
    """A project that has been read: the file's content plus overrides, and where it lies."""

    root: Path = Field(exclude=True)
    """Folder of the project file; relative paths start here."""

    @property
    def name(self) -> str:
        return self.project.name

    @property
    def store_folder(self) -> Path:
        return (self.root / self.store.url).resolve()

    def _repr_html_(self) -> str:
        import html

        return f"<pre>{html.escape(self.model_dump_json(indent=2))}</pre>"
