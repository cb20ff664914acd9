"""What can be asked for: the typed content of ``yard.toml``, section by section."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from modelyard.spec.section import Fraction, Section
from modelyard.spec.task import TaskSection
from modelyard.spec.training import TrainSection

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""Lower-case letters, digits and hyphens: it becomes a host name, a metric label and an OCI tag."""


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
    keep: Literal["pixels", "files"] = Field(
        "pixels",
        description="Images: what the prepared dataset holds. pixels: decoded once, the fastest to train from. "
        "files: as they came, decoded anew beside each step, where the pixels would not fit the disk.",
    )
    columns: dict[str, Literal["numeric", "categorical", "boolean", "ignore"]] = Field(
        {}, description='Tables: the kind of a column where the guess is wrong, or "ignore".'
    )
    text: str = Field(
        "",
        description="csv, jsonl, parquet, arrow: the column whose text is the whole input, or with data.image "
        'or data.fuse a part of it; the source "text" needs none.',
    )
    image: str = Field(
        "",
        description="csv, jsonl, parquet, arrow: the column that names each row's picture, a file in the folder "
        "data.path; a sample is then the picture, the text of data.text if there is one, and all other columns.",
    )
    fuse: bool = Field(
        False,
        description="With data.text: a sample is the text and all other columns; data.image needs none of this.",
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

    @property
    def mixed(self) -> bool:
        """Whether a sample has several parts: a picture, a text, columns."""
        return bool(self.image) or self.fuse


class ModelSection(Section):
    build: str = Field(
        description='"module:function" that returns a model, or a built-in one: "mlp", "cnn", "resnet", '
        '"rnn", "transformer-encoder", … (docs/models.md).'
    )
    framework: Literal["pytorch", "keras", "jax"] = Field(
        "pytorch",
        description="Built-in models: what they are written in. A function's framework is seen from what it returns.",
    )
    args: dict[str, Any] = Field({}, description="Keyword arguments for the function.")
    weights: str = Field(
        "",
        description='Weights to start from: "run:ID", a model of the registry ("digits:3"), a safetensors or ONNX '
        "file, a checkpoint, or a folder as Hugging Face's; relative to the project file.",
    )
    rename: dict[str, str] = Field(
        {},
        description='Start weights: beginning of a name in the file to what stands there in the model, e.g. { "bert." = "" }.',
    )
    fresh: list[str] = Field(
        [],
        description='Start weights: names in the model, or patterns of them, that begin anew, e.g. ["head.*"].',
    )

    @property
    def full_name(self) -> str:
        """``build``; of a built-in model in another framework than PyTorch with it: ``keras/mlp``."""
        plain = ":" in self.build or self.framework == "pytorch"
        return self.build if plain else f"{self.framework}/{self.build}"


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
