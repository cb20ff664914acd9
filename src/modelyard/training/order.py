"""The work order: everything a worker needs to know, so that it reads no project file."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelyard.backends.source import build_model
from modelyard.spec.records import Checkpoint, Dataset, Record, Spent, TaskSpec
from modelyard.spec.signature import Signature
from modelyard.spec.start_weights import StartWeights
from modelyard.spec.training import TrainSection

ORDER, EVENTS, RESULT, RUN = "order.json", "events.jsonl", "result.json", "run.json"
PROOF = "resume-proof.json"


class Proving(Record, frozen=True, kw_only=True):
    """For a proof or a rehearsal: what is different from a training. Neither is told to MLflow."""

    watched: bool = True
    """Each worker writes down what its steps are given."""

    dies_at: int | None = None
    """At this step the last worker of the first attempt kills itself."""
    rates: tuple[float, ...] = ()
    """In place of a training: one step with each of these learning rates."""
    still: bool = False
    """The model is trained as it is judged: without dropout, batch norms by their running statistics."""


class WorkOrder(Record, frozen=True, kw_only=True):
    """``order.json`` in the run's folder."""

    run: str
    root: str
    """Folder of the project, where the model's module lies."""
    build: str
    args: dict[str, Any] = {}
    train: dict[str, Any]
    """The ``[train]`` section with all its values."""
    dataset: Dataset
    signature: Signature
    task: TaskSpec
    backend: str = ""
    """A name of the backends' table; empty: recognised from the model."""
    steps: int
    """Optimizer steps of the whole training."""
    folder: str
    """The run's folder."""
    seed: int = 0
    spent: Spent = Spent()
    """What the run's record knows of earlier commands; the event log may know of more."""
    threads: int = 1
    """Threads that each worker may use."""
    memory: dict[str, int] = {}
    """Kind of device to the most samples at once, where this model ran out of memory before."""
    memory_key: str = ""
    """Under which the store remembers that."""
    proving: Proving | None = None
    start: StartWeights | None = None
    """Weights that the model begins with in place of its own."""

    @property
    def section(self) -> TrainSection:
        return TrainSection.model_validate(self.train)

    def fresh_model(self) -> object:
        """The model as its function makes it. Raises ModelError."""
        root, natural = Path(self.root), self.dataset.input
        return build_model(
            root, self.build, self.args, self.signature, self.task, seed=self.seed, natural=natural
        )


class Result(Record, frozen=True, kw_only=True):
    """``result.json``: what a finished training gave; written last, by worker 0."""

    best: Checkpoint
    metrics: dict[str, float]
    """``validation/loss``, ``test/accuracy``, … of the best checkpoint."""
    confusion: tuple[tuple[int, ...], ...] = ()
    backend: str
    step: int
    seconds: float
    """Spent by workers, over all attempts, as far as checkpoints remember."""
    samples_per_second: float
    """While stepping: without evaluation, checkpoints and start-up."""
    reason: str
    """``all epochs``, ``early stopping``, or the budget that ended it."""
    spent: Spent = Spent()


def read_order(folder: Path) -> WorkOrder:
    return WorkOrder.from_json((folder / ORDER).read_bytes())


def attempt_folder(run_folder: Path, attempt: int) -> Path:
    """Where the workers of one attempt leave word of their failures."""
    return run_folder / "workers" / f"attempt-{attempt}"


def timestamp() -> str:
    """Now, as records carry it: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
