"""How long a checkpoint of a large training state holds the training up, and how long it takes to read.

Run with ``python -m benchmarks.checkpoints [--megabytes 500] [--rounds N] [--folder F] [--json]``.
The contenders save the same PyTorch model with AdamW's state, in turns:

- ``in line``: as Modelyard did before it had a `Writer`: copy, serialise, write, hash, flush, publish.
- ``torch.save``: what most hand-written loops do; neither hashed, nor flushed, nor published whole.
- ``Writer.save``: how long training stands still; the rest happens beside it. Each round waits, outside
  the measure, until the save before is on disk.

The bar: ``Writer.save`` takes at most a tenth of ``in line``. Then: the whole of such a save until it is
on disk, and the reading of it, hashes compared, to arrays and into the model.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from torch import nn

from benchmarks.harness import Contender, Row, compare, options, show
from modelyard.backends.base import Batch, OptimizerSettings, StepSettings
from modelyard.backends.pytorch import PyTorch
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import Signature, Tensor
from modelyard.spec.work import World
from modelyard.store.files import digest_bytes, new_folder
from modelyard.training import checkpoints
from modelyard.training.checkpoints import Progress
from modelyard.training.saving import Writer

ALONE = World(rank=0, size=1, rendezvous="")
WIDTH = 1024


def model_of(megabytes: float) -> nn.Module:
    """Layers whose weights with AdamW's two moments take that much."""
    layers = max(1, round(megabytes * 1e6 / (3 * 4 * WIDTH * (WIDTH + 1))))
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)), nn.Linear(WIDTH, 1))


class Training:
    """A model after one step, so that the optimizer has its state."""

    def __init__(self, megabytes: float) -> None:
        self.backend = PyTorch()
        signature = Signature(
            inputs=(Tensor(name="input", dtype="float32", shape=(None, WIDTH)),),
            outputs=(Tensor(name="output", dtype="float32", shape=(None, 1)),),
        )
        task = TaskSpec(type="regression", target="y", loss="mean-squared-error")
        self.state = self.backend.begin(
            model_of(megabytes), task, OptimizerSettings(name="adamw"), signature
        )
        self.step(0)
        tensors = self.backend.view(self.state).tensors
        self.bytes = sum(array.nbytes for array in tensors.values())

    def step(self, number: int) -> None:
        rng = np.random.default_rng(number)
        batch = Batch(
            inputs=rng.normal(size=(4, WIDTH)).astype(np.float32),
            targets=rng.normal(size=4).astype(np.float32),
            global_size=4,
        )
        self.backend.step(self.state, batch, StepSettings(learning_rate=1e-3, seed=number))


def save_in_line(training: Training, folder: Path) -> None:
    """The way of version 0.1, in full."""
    snapshot = training.backend.snapshot(training.state)
    for name, array in snapshot.tensors.items():
        assert np.isfinite(array).all(), name
    digests = {}
    with new_folder(folder / "step") as building:
        for file, prefix in (("model.safetensors", "model."), ("optimizer.safetensors", "opt")):
            part = {k: a for k, a in snapshot.tensors.items() if k.startswith(prefix)}
            content = safetensors.numpy.save(part)
            (building / file).write_bytes(content)
            digests[file] = digest_bytes(content)


def save_by_torch(training: Training, folder: Path) -> None:
    state = {
        "model": training.state.model.state_dict(),
        "optimizer": training.state.optimizer.state_dict(),
    }
    torch.save(state, folder / "state.pt")


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@contextmanager
def place(folder: str | None) -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="benchmark-checkpoints-", dir=folder))
    try:
        yield made
    finally:
        shutil.rmtree(made)


def measure_saving(training: Training, folder: Path, rounds: int) -> tuple[list[Row], list[float]]:
    """Rows of the blocked seconds, and the seconds until each of the writer's saves was on disk."""
    whole: list[float] = []
    writer = Writer(folder / "run", ALONE, keep=1, saved=lambda _, took, __: whole.append(took))
    turn = 0

    def blocked() -> float:
        nonlocal turn
        writer.wait()
        training.step(turn := turn + 1)
        view = training.backend.view
        return seconds(
            lambda: writer.save(view(training.state), Progress(step=turn), epoch=float(turn))
        )

    def in_line() -> float:
        writer.wait()
        return seconds(lambda: save_in_line(training, folder))

    def by_torch() -> float:
        writer.wait()
        return seconds(lambda: save_by_torch(training, folder))

    with writer:
        rows = compare(
            [
                Contender("in line", in_line),
                Contender("torch.save", by_torch),
                Contender("Writer.save", blocked),
            ],
            rounds,
        )
    return rows, whole[-rounds:]


def measure_reading(training: Training, folder: Path, rounds: int) -> list[Row]:
    found, _ = checkpoints.latest(folder / "run")
    assert found is not None

    def by_torch() -> float:
        def read() -> None:
            state = torch.load(folder / "state.pt", weights_only=True)
            training.state.model.load_state_dict(state["model"])
            training.state.optimizer.load_state_dict(state["optimizer"])

        return seconds(read)

    def restore() -> float:
        return seconds(lambda: training.backend.restore(training.state, checkpoints.load(found)[0]))

    return compare(
        [
            Contender("torch.load, nothing verified", by_torch),
            Contender(
                "load, verified, to arrays", lambda: seconds(lambda: checkpoints.load(found))
            ),
            Contender("load, verified, into the model", restore),
        ],
        rounds,
    )


def main() -> None:
    parser = options(__doc__ or "", rounds=7)
    parser.add_argument("--megabytes", type=float, default=500.0, help="default 500")
    parser.add_argument("--folder", help="where to write; default: the system's temporary folder")
    chosen = parser.parse_args()
    training = Training(chosen.megabytes)
    size = f"{training.bytes / 1e6:.0f} MB of state"
    with place(chosen.folder) as folder:
        rows, whole = measure_saving(training, folder, chosen.rounds)
        show(f"saving {size}: training stands still", "s", rows, as_json=chosen.json)
        if not chosen.json:
            print(
                f"until on disk, beside the training: {statistics.median(whole):.2f} s (median)\n"
            )
        rows = measure_reading(training, folder, chosen.rounds)
        show(f"reading {size}", "s", rows, as_json=chosen.json)


if __name__ == "__main__":
    main()
