"""The frozen values that travel between the stages, and how they are written down and shown."""

from typing import Any, Literal

import msgspec

from modelyard.spec.proof import Proof as Proof
from modelyard.spec.record import Record as Record
from modelyard.spec.signature import NaturalInput, Signature
from modelyard.spec.start_weights import Started


class TaskSpec(Record, frozen=True, kw_only=True):
    """What is asked of the data, complete enough to open the task anywhere (also in the service)."""

    type: str
    """``classification`` or ``regression``: a name of the tasks' table."""
    target: str
    loss: str
    """``cross-entropy``, ``huber``, … (``spec.task.LOSSES``), or the user's own: ``module:function``."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the model's outputs; empty for regression."""
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    huber_delta: float = 1.0
    class_weights: tuple[float, ...] = ()
    """Factor of the losses of each class, in the order of ``classes``; empty: all count alike."""
    metrics: tuple[str, ...] = ()
    """The user's own, ``module:function``; known by the function's name."""
    lower_is_better: tuple[str, ...] = ()
    """Names of those of ``metrics`` for which lower is better."""


class Finding(Record, frozen=True, kw_only=True):
    """One thing that the quality report noticed."""

    kind: str
    """``unreadable``, ``missing``, ``duplicate``, ``leak``, ``imbalance``, ``constant``, ``typo``, …"""
    severity: Literal["note", "warning", "error"]
    message: str
    examples: tuple[str, ...] = ()


class Dataset(Record, frozen=True, kw_only=True):
    """A source, prepared once: digest, splits, classes, the fitted input, what its quality is."""

    id: str
    """Digest of the source's content and of everything that shaped the preparation."""
    source: str
    path: str
    """Where the source lies (a folder, a file, or ``module:function``)."""
    folder: str
    """Where the prepared arrays lie, in the store."""
    samples: int
    splits: dict[str, int]
    """Samples of ``train``, ``validation`` and ``test``."""
    task: TaskSpec
    input: NaturalInput
    quality: tuple[Finding, ...] = ()
    code: str = ""
    """Digest of the user's loading code, where there is some."""


class WorkerRecord(Record, frozen=True, kw_only=True):
    """One worker that took part in a training."""

    rank: int
    pid: int
    host: str
    device: str
    attempt: int = 0


class Checkpoint(Record, frozen=True, kw_only=True):
    """A published state of a training; the manifest is written last, so it is whole if it exists."""

    step: int
    epoch: float
    folder: str
    metrics: dict[str, float] = {}
    files: dict[str, str] = {}
    """File name to ``sha256:…``."""
    format: int = 1
    """2: shards, with a list of pieces each; 1: one file of weights and one of the rest."""


class Spent(Record, frozen=True, kw_only=True):
    """What workers have taken, in all attempts of all commands, crashes included."""

    seconds: float = 0.0
    """Time in which workers were up."""
    worker_seconds: float = 0.0
    """The same, once for each worker."""


class Machine(Record, frozen=True, kw_only=True):
    """Where a training was commanded from."""

    host: str
    system: str
    processor: str
    cores: int
    """That it might use."""
    memory: int
    """Bytes."""
    gpus: tuple[str, ...] = ()


class Run(Record, frozen=True, kw_only=True):
    """One training: what went in, who took part, how it ended."""

    id: str
    project: str
    state: Literal["running", "complete", "failed", "interrupted"]
    created: str
    """ISO 8601, UTC."""
    finished: str | None = None
    folder: str
    dataset: str
    inputs: dict[str, str] = {}
    """Named, flat inputs (``data``, ``code``, ``train.epochs``, …) whose digest is the id."""
    backend: str = ""
    execution: dict[str, Any] = {}
    """How steps were computed: ``precision``, ``compile``, ``channels_last``, ``linear``, ``parallel``, ``micro_batch``."""
    start: Started | None = None
    """What the model took of the weights that it started from."""
    engine: str = ""
    world_size: int = 0
    workers: tuple[WorkerRecord, ...] = ()
    """The workers of every attempt."""
    restarts: int = 0
    step: int = 0
    steps: int = 0
    skipped: tuple[int, ...] = ()
    """Steps, from 0, whose batches were left out: with them a loss or gradient was no finite number."""
    notices: tuple[str, ...] = ()
    """What people were warned of, in all attempts."""
    best: Checkpoint | None = None
    metrics: dict[str, float] = {}
    """``test/accuracy``, ``validation/loss``, … of the best checkpoint."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Test split: rows are true classes, columns are predicted; empty for regression."""
    seconds: float = 0.0
    samples_per_second: float = 0.0
    error: str = ""
    reason: str = ""
    """Why a complete run ended: ``all epochs``, ``early stopping``, ``step budget``, ``time budget``, ``cost budget``."""
    spent: Spent = Spent()
    cost: float | None = None
    """At ``train.price_per_worker_hour``; None without a price."""
    seed: int = 0
    machine: Machine | None = None
    versions: dict[str, str] = {}
    """Of Modelyard, Python, the frameworks and what they share."""
    command: str = ""
    """The last command that trained it."""
    code: dict[str, str] = {}
    """Files of the model's code and their digests; copies lie in ``code/`` beside the record."""
    proofs: tuple[Proof, ...] = ()
    """What was proven of this very project, data and code."""


class Parity(Record, frozen=True, kw_only=True):
    """How far the exported model's answers are from the framework's, on the same inputs."""

    samples: int
    largest_error: float
    """Largest difference of any output value: absolute up to 1, relative above."""
    limit: float
    framework: str
    runtime: str
    framework_milliseconds: float = 0.0
    """Median time of one sample, one thread."""
    runtime_milliseconds: float = 0.0


class Bundle(Record, frozen=True, kw_only=True):
    """What is shipped: a content-addressed, pickle-free model with everything to run and check it."""

    digest: str
    """``sha256:…`` of the OCI manifest."""
    name: str
    run: str
    dataset: str
    signature: Signature
    input: NaturalInput
    task: TaskSpec
    parity: Parity
    metrics: dict[str, float] = {}
    size: int = 0
    """Bytes of all layers."""
    created: str = ""


class ModelVersion(Record, frozen=True, kw_only=True):
    """A name and a number for a bundle, with its aliases and where it came from."""

    name: str
    version: int
    digest: str
    aliases: tuple[str, ...] = ()
    created: str = ""
    run: str = ""
    dataset: str = ""
    metrics: dict[str, float] = {}

    @property
    def reference(self) -> str:
        return f"{self.name}:{self.version}"


class Service(Record, frozen=True, kw_only=True):
    """What is to be up: one model version behind one address."""

    name: str
    model: str
    version: int
    digest: str
    bundle_folder: str
    """The unpacked bundle that the replicas read."""
    host: str = "127.0.0.1"
    port: int = 8080
    replicas: int = 2
    protocols: tuple[str, ...] = ("rest",)
    max_batch: int = 64
    max_request_bytes: int = 32 * 1024 * 1024
    timeout_seconds: float = 30.0


class Replica(Record, frozen=True, kw_only=True):
    """One serving process as its supervisor sees it."""

    index: int
    pid: int | None
    address: str
    state: Literal["starting", "ready", "draining", "stopped", "failed"]
    version: int
    digest: str
    restarts: int = 0
    since: str = ""
    error: str = ""


class Deployment(Record, frozen=True, kw_only=True):
    """A service on a target, as it is observed."""

    name: str
    target: str
    state: Literal["starting", "ready", "degraded", "stopped", "failed"]
    url: str
    service: Service
    replicas: tuple[Replica, ...] = ()
    supervisor_pid: int | None = None
    folder: str = ""
    error: str = ""


# --- events: one append-only JSON line each; many faces read them ----------------------------


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """One fact with a time (seconds since 1970)."""

    time: float
    attempt: int = 0


class RunStarted(Event, frozen=True, kw_only=True, tag="run-started"):
    steps: int
    steps_per_epoch: float
    world_size: int
    step: int = 0
    """Where it starts: above 0 after a resume."""


class WorkerJoined(Event, frozen=True, kw_only=True, tag="worker-joined"):
    rank: int
    pid: int
    host: str
    device: str
    start_seconds: float = 0.0
    """From the start of its process until now: loading the framework, mostly."""


class StepDone(Event, frozen=True, kw_only=True, tag="step"):
    """Written every few steps, with means since the one before."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    samples_per_second: float
    eta_seconds: float
    """To the end, with the evaluations that are still to come."""
    tokens_per_second: float | None = None
    """Texts only; what fills a short text up counts as well, since it is computed too."""
    gradient_norm: float | None = None
    """Of the last step, before clipping."""
    data_wait: float | None = None
    """Share of the time that workers waited for data."""
    memory: int | None = None
    """Resident bytes of all workers."""
    device_memory: int | None = None
    """Peak bytes on GPUs, of all workers."""
    cpu: float | None = None
    """Processor cores that all workers kept busy."""
    device_use: float | None = None
    """Share of the time that GPUs were busy."""


class Evaluated(Event, frozen=True, kw_only=True, tag="evaluated"):
    step: int
    epoch: float
    split: str
    metrics: dict[str, float]


class CheckpointSaved(Event, frozen=True, kw_only=True, tag="checkpoint"):
    step: int
    best: bool
    seconds: float
    """From the copy of the state until it could be read from the disk."""
    blocked: float = 0.0
    """Seconds of these in which training stood still."""


class WorkerLost(Event, frozen=True, kw_only=True, tag="worker-lost"):
    rank: int
    pid: int | None
    reason: str


class Restarted(Event, frozen=True, kw_only=True, tag="restarted"):
    step: int
    """The step of the checkpoint that the workers start from."""


class WentBack(Event, frozen=True, kw_only=True, tag="went-back"):
    """A loss, gradient or weight was no finite number: training went on from an earlier step."""

    step: int
    """Of the checkpoint; 0: the beginning."""
    fault: int
    """The step, from 0, at which it was seen."""
    skipped: int | None = None
    """The step, from 0, whose batch is left out from now on; None: it is being looked for."""
    reason: str


class Noticed(Event, frozen=True, kw_only=True, tag="noticed"):
    """A warning for people."""

    message: str


class RunFinished(Event, frozen=True, kw_only=True, tag="run-finished"):
    state: str
    step: int
    seconds: float
    metrics: dict[str, float] = {}
    reason: str = ""
    """Why it ended: ``all epochs``, ``early stopping``, ``time budget``, ``interrupted``, an error."""


AnyEvent = (
    RunStarted
    | WorkerJoined
    | StepDone
    | Evaluated
    | CheckpointSaved
    | WorkerLost
    | Restarted
    | WentBack
    | Noticed
    | RunFinished
)
