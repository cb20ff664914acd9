"""Training steps with batches made in line, ahead by a thread, or as ``data.feed`` chooses.

Run with ``python -m benchmarks.feed [--case NAME] [--rounds N] [--steps N] [--threads N] [--json]``.
The work: the seed CNN of ``training_loop`` on pictures of 32 or 224 pixels a side, batch 32, with and
without augmentation; and, as a step that is short beside its data, one layer over patches of 16 x 16
pixels and a dense one. Each turn has a fresh process, set up as the engine sets up a worker. What is
printed is samples a second, and for the choosing one what it came to.
"""

import os
import subprocess
import sys
import tempfile
import time
from functools import partial

import numpy as np
import torch
from torch import nn

from benchmarks.harness import Contender, compare, options, show
from modelyard.backends import open_backend
from modelyard.backends.base import Batch, OptimizerSettings, StepSettings
from modelyard.backends.families.pytorch_pictures import cnn
from modelyard.data.cursor import Cursor
from modelyard.data.dataset import Split
from modelyard.data.feed import AHEAD, BatchMaker, Feed
from modelyard.engines.local import Local
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import ImageInput, Signature, Tensor
from modelyard.spec.training import AugmentSection
from modelyard.spec.work import Job

BATCH, CLASSES = 32, tuple("0123456789")
VARIED = AugmentSection(flip=0.5, crop=4, color=0.3, mixup=0.2)
CASES = {
    "32": (32, False, AugmentSection()),
    "32 varied": (32, False, VARIED),
    "224": (224, False, AugmentSection()),
    "224 varied": (224, False, VARIED),
    "224 light varied": (224, True, VARIED),
}
WAYS = {"in line": 0, "ahead": AHEAD, "as chosen": None}


def turn(case: str, way: str, steps: int) -> float:
    """Samples a second; the steps that ``Feed`` needs to choose are not counted."""
    side, light, augment = CASES[case]
    samples = 3200 if side == 32 else 320
    spec = ImageInput(
        height=side, width=side, color="rgb", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)
    )
    rng = np.random.default_rng(0)
    split = Split(
        spec=spec,
        inputs=rng.integers(0, 256, (samples, *spec.shape), dtype=np.uint8),
        targets=rng.integers(0, len(CLASSES), samples),
        positions=np.arange(samples),
    )
    task = TaskSpec(type="classification", target="t", loss="cross-entropy", classes=CLASSES)
    signature = Signature(
        inputs=(Tensor(name="input", dtype="float32", shape=(None, *spec.shape)),),
        outputs=(Tensor(name="scores", dtype="float32", shape=(None, len(CLASSES))),),
    )
    backend = open_backend("pytorch")
    model = patches() if light else cnn(spec.shape, len(CLASSES))
    state = backend.begin(model, task, OptimizerSettings(name="adamw"), signature, spec)
    maker = BatchMaker(split, Cursor(samples, BATCH, 0), augment=augment)
    first = 45 if WAYS[way] is None else min(5, steps)
    with Feed(maker, ahead=WAYS[way]) as feed:
        for step in range(first + steps):
            if step == first:
                began = time.perf_counter()
            made = feed.take(step)
            batch = Batch(
                inputs=made.inputs,
                targets=made.targets,
                global_size=BATCH,
                other_targets=made.other_targets,
                weight=made.weight,
            )
            settings = StepSettings(learning_rate=1e-3, seed=step)
            state, _ = backend.step(state, batch, settings)
        seconds = time.perf_counter() - began
        if WAYS[way] is None:
            sys.stderr.write(f"{case}: {'ahead' if feed.ahead else 'in line'}\n")
    return steps * BATCH / seconds


def patches() -> nn.Module:
    layers = nn.Conv2d(3, 64, 16, stride=16), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(64 * 14 * 14, len(CLASSES)))


def in_own_process(case: str, way: str, steps: int, threads: int) -> float:
    job = Job(name="turn", arguments=(), size=1, folder=tempfile.gettempdir())
    environment = os.environ | Local().plan(job)["processes"][0]["environment"]
    command = [sys.executable, "-m", "benchmarks.feed", "--case", case, "--way", way]
    command += ["--steps", str(steps), "--threads", str(threads)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = options(__doc__ or "", rounds=5)
    parser.add_argument("--case", choices=list(CASES), default="32")
    parser.add_argument("--steps", type=int, default=100, help="of each turn; default 100")
    parser.add_argument("--threads", type=int, default=1, help="of each step; default 1")
    parser.add_argument("--way", choices=list(WAYS), help="one turn of one way, and no table")
    chosen = parser.parse_args()
    if chosen.way:
        torch.set_num_threads(chosen.threads)
        sys.stdout.write(f"{turn(chosen.case, chosen.way, chosen.steps)}\n")
        return
    contenders = [
        Contender(way, partial(in_own_process, chosen.case, way, chosen.steps, chosen.threads))
        for way in WAYS
    ]
    rows = compare(contenders, chosen.rounds)
    title = f"batches of 32, case {chosen.case}, {chosen.threads} threads"
    show(title, "samples/s", rows, as_json=chosen.json)


if __name__ == "__main__":
    main()
