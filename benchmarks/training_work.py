"""The three trainings that ``benchmarks.training`` compares: their data on disk and their models in PyTorch.

The data are made from a seed and learnable. They lie on disk as ``.npy`` (memory-mapped by every
contender), images as they are stored: uint8, once with channels first and, for frameworks that want
them so, once with channels last.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES, RATE, DECAY = 10, 1e-3, 0.01
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Work:
    """One training: its data and its (global) batch; float32, AdamW, cross-entropy, no dropout."""

    name: str
    title: str
    shape: tuple[int, ...]
    batch: int
    samples: int
    steps: int
    """Timed of each turn, so that the fastest contender takes about two seconds."""


WORKS = {
    work.name: work
    for work in (
        Work("cnn", "CNN: 3x32x32, conv 32, conv 64, dense 128", (3, 32, 32), 32, 6400, 400),
        Work("mlp", "MLP: 32 columns, dense 128, dense 64", (32,), 128, 51200, 6000),
        Work("transformer", "transformer: 64 x 32, width 128, 2 layers", (64, 32), 32, 6400, 60),
    )
}


def make_data(folder: Path, work: Work) -> Path:
    """``inputs.npy``, ``targets.npy`` (and ``inputs-last.npy`` for images) in a folder of their own, made once."""
    place = folder / work.name
    if (place / "targets.npy").exists():
        return place
    place.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    targets = generator.integers(0, CLASSES, work.samples)
    centres = generator.normal(size=(CLASSES, *work.shape)).astype(np.float32)
    inputs = generator.normal(size=(work.samples, *work.shape)).astype(np.float32)
    inputs += 0.5 * centres[targets]
    if work.name == "cnn":
        inputs = np.clip(128 + 48 * inputs, 0, 255).astype(np.uint8)
        np.save(place / "inputs-last.npy", np.ascontiguousarray(inputs.transpose(0, 2, 3, 1)))
    np.save(place / "inputs.npy", inputs)
    np.save(place / "targets.npy", targets)
    return place


def read_data(place: Path, *, last: bool = False) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Memory-mapped inputs and targets."""
    name = "inputs-last.npy" if last and (place / "inputs-last.npy").exists() else "inputs.npy"
    return np.load(place / name, mmap_mode="r"), np.load(place / "targets.npy", mmap_mode="r")


def build(work: Work) -> Any:
    """The model in PyTorch, always with the same initial weights."""
    import torch
    from torch import nn

    from modelyard.backends.families.pytorch_dense import mlp
    from modelyard.backends.families.pytorch_pictures import cnn

    torch.manual_seed(0)
    if work.name == "cnn":
        return cnn(work.shape, CLASSES)
    if work.name == "mlp":
        return mlp(work.shape, CLASSES, hidden=(128, 64))
    length, width = work.shape

    class Transformer(nn.Module):
        """Encoder over vectors; the mean over places goes to the classes."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(width, 128)
            self.places = nn.Parameter(0.02 * torch.randn(length, 128))
            layer = nn.TransformerEncoderLayer(
                128, 4, 512, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(128, CLASSES)

        def forward(self, x: Any) -> Any:
            return self.head(self.encoder(self.embed(x) + self.places).mean(dim=1))

    return Transformer()


@dataclass(frozen=True)
class Turn:
    """What one contender is to do once, in a process (or several) of its own."""

    work: Work
    place: Path
    """Folder of the data."""
    workers: int
    steps: int
    warm_up: int
    options: tuple[str, ...]
    """Of the contender, such as ``compiled``."""

    @property
    def share(self) -> int:
        """Samples of a batch that each worker takes."""
        return self.work.batch // self.workers

    @property
    def epochs(self) -> int:
        """Enough whole epochs for all steps."""
        return -(-(self.warm_up + self.steps) * self.work.batch // self.work.samples)


class Watch:
    """Counts steps; the time runs from the end of the warm-up to the end of the last step."""

    def __init__(self, turn: Turn) -> None:
        self._turn, self._done, self._began, self.seconds = turn, 0, 0.0, 0.0

    def tick(self) -> bool:
        """One step is done; True when it was the last."""
        self._done += 1
        if self._done == self._turn.warm_up:
            self._began = time.perf_counter()
        over = self._done == self._turn.warm_up + self._turn.steps
        if over:
            self.seconds = time.perf_counter() - self._began
        return over


def read_turn(arguments: list[str] | None = None) -> Turn:
    """The turn that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", choices=list(WORKS), required=True)
    parser.add_argument("--place", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--warm-up", type=int, default=20)
    parser.add_argument("--options", default="")
    chosen = parser.parse_args(arguments)
    return Turn(
        work=WORKS[chosen.work],
        place=chosen.place,
        workers=chosen.workers,
        steps=chosen.steps,
        warm_up=chosen.warm_up,
        options=tuple(filter(None, chosen.options.split(","))),
    )


def report(turn: Turn, seconds: float, loss: float, **more: Any) -> None:
    """Tell the parent; one line that frameworks' own output cannot be taken for."""
    found = {"rate": turn.steps * turn.work.batch / seconds, "loss": loss, **more}
    sys.stdout.write(f"\nTURN {json.dumps(found)}\n")
    sys.stdout.flush()
