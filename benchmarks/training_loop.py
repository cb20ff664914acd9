"""Samples a second of ``training.loop.run_loop`` against hand-written eager PyTorch loops.

Run with ``python -m benchmarks.training_loop [--rounds N] [--steps N] [--threads N] [--json]``.
The work: images 3x32x32 (uint8, normalised on the way), two convolutions (32, 64), dense 128, ten
classes, AdamW, batch 32, one process on the CPU. All start from the same weights. Each turn has a fresh
process: ours is set up as the engine sets up a worker, the others as a person starts them. Ours runs the whole
loop (learning-rate schedule, seeded steps, meetings, events); only the checkpoint that it publishes
at the end, which the others do not write, is left out of its time. The bar: at least 1.
"""

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.harness import Contender, compare, options, show
from modelyard.backends import open_backend
from modelyard.backends.base import OptimizerSettings
from modelyard.backends.families.pytorch_pictures import cnn
from modelyard.data.cursor import Cursor
from modelyard.data.dataset import Split
from modelyard.engines.local import Local
from modelyard.spec.records import AnyEvent, CheckpointSaved, TaskSpec
from modelyard.spec.signature import ImageInput, Signature, Tensor
from modelyard.spec.training import OptimizerSection, ScheduleSection, TrainSection
from modelyard.spec.work import Job, World
from modelyard.tasks import open_task
from modelyard.training.checkpoints import Progress
from modelyard.training.loop import Course, run_loop

SAMPLES, CLASSES, BATCH, RATE, DECAY = 3200, 10, 32, 1e-3, 0.01
INPUT = ImageInput(
    height=32, width=32, color="rgb", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
TASK = TaskSpec(
    type="classification",
    target="label",
    loss="cross-entropy",
    classes=tuple(str(number) for number in range(CLASSES)),
)
SIGNATURE = Signature(
    inputs=(Tensor(name="input", dtype="float32", shape=(None, *INPUT.shape)),),
    outputs=(Tensor(name="scores", dtype="float32", shape=(None, CLASSES)),),
)
ALONE = World(rank=0, size=1, rendezvous="")
_GENERATOR = np.random.default_rng(0)
IMAGES = _GENERATOR.integers(0, 256, (SAMPLES, *INPUT.shape), dtype=np.uint8)
LABELS = _GENERATOR.integers(0, CLASSES, SAMPLES)


def model() -> nn.Module:
    torch.manual_seed(0)
    return cnn(INPUT.shape, CLASSES)


def ours(steps: int) -> float:
    """Samples a second of the product's own loop."""
    saving: list[float] = []

    def emit(event: AnyEvent) -> None:
        if isinstance(event, CheckpointSaved):
            saving.append(event.seconds)

    backend = open_backend("pytorch")
    settings = OptimizerSettings(name="adamw", weight_decay=DECAY)
    state = backend.begin(model(), TASK, settings, SIGNATURE, INPUT)
    everything = np.arange(SAMPLES)
    train = Split(spec=INPUT, inputs=IMAGES, targets=LABELS, positions=everything)
    section = TrainSection(
        batch_size=BATCH,
        optimizer=OptimizerSection(lr=RATE),
        schedule=ScheduleSection(name="constant", warmup=0.0),
        evaluate_every=1e6,
        checkpoint_seconds=1e6,
    )
    with tempfile.TemporaryDirectory() as folder:
        course = Course(
            folder=Path(folder),
            section=section,
            steps=steps,
            world=ALONE,
            backend=backend,
            task=open_task(TASK),
            cursor=Cursor(SAMPLES, BATCH, 0),
            train=train,
            validation=Split(spec=INPUT, inputs=IMAGES, targets=LABELS, positions=everything[:0]),
            emit=emit,
            asked_to_stop=lambda: False,
        )
        began = time.perf_counter()
        run_loop(course, state, Progress())
        seconds = time.perf_counter() - began - sum(saving)
    return steps * BATCH / seconds


class Images(Dataset[tuple[torch.Tensor, int]]):
    """As in most tutorials: one sample at a time, normalised where it is read."""

    def __init__(self) -> None:
        self.mean = torch.tensor(INPUT.mean).reshape(3, 1, 1)
        self.std = torch.tensor(INPUT.std).reshape(3, 1, 1)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        image = torch.from_numpy(IMAGES[place]).float() / 255
        return (image - self.mean) / self.std, int(LABELS[place])


def by_hand(data: Dataset[Any], normalise: bool, steps: int) -> float:
    """Samples a second of a loop that someone would write; the normalisation may be per batch."""
    mean = torch.tensor(INPUT.mean).reshape(1, 3, 1, 1)
    std = torch.tensor(INPUT.std).reshape(1, 3, 1, 1)
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True)
    done, total = 0, 0.0
    began = time.perf_counter()
    while done < steps:
        for images, labels in loader:
            inputs = (images.float() / 255 - mean) / std if normalise else images
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(inputs), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
            done += 1
            if done == steps:
                break
    return steps * BATCH / (time.perf_counter() - began)


def one_batch(steps: int) -> float:
    """The same batch again and again: what steps alone could reach, with no data at all."""
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    inputs, labels = torch.rand(BATCH, *INPUT.shape), torch.from_numpy(LABELS[:BATCH])
    began = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
    return steps * BATCH / (time.perf_counter() - began)


TENSORS = TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS))
TURNS = {
    "by hand, TensorDataset": partial(by_hand, TENSORS, True),
    "by hand, Dataset": partial(by_hand, Images(), False),
    "by hand, one batch": one_batch,
    "modelyard": ours,
}


def in_own_process(name: str, steps: int, threads: int) -> float:
    """One turn in a process of its own: ours with what the engine gives a worker, the others as they are."""
    environment = dict(os.environ)
    if name == "modelyard":
        job = Job(name="turn", arguments=(), size=1, folder=tempfile.gettempdir())
        environment |= Local().plan(job)["processes"][0]["environment"]
    command = [sys.executable, "-m", "benchmarks.training_loop", "--turn", name]
    command += ["--steps", str(steps), "--threads", str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = options(__doc__ or "", rounds=7)
    parser.add_argument("--steps", type=int, default=100, help="of each turn; default 100")
    parser.add_argument("--threads", type=int, default=1, help="of each contender; default 1")
    parser.add_argument(
        "--turn", choices=list(TURNS), help="one turn of one contender, and no table"
    )
    chosen = parser.parse_args()
    if chosen.turn:
        torch.set_num_threads(chosen.threads)
        TURNS[chosen.turn](10)  # the first steps are slower: memory, kernels
        sys.stdout.write(f"{TURNS[chosen.turn](chosen.steps)}\n")
        return
    contenders = [
        Contender(name, partial(in_own_process, name, chosen.steps, chosen.threads))
        for name in TURNS
    ]
    rows = compare(contenders, chosen.rounds)
    show("training loop, CNN, batch 32", "samples/s", rows, as_json=chosen.json)


if __name__ == "__main__":
    main()
