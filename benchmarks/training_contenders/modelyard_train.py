"""Ours as a user has it: a project file, ``modelyard.train``; workers, events, checkpoints and all else that ships.

The rate is read from the run's own events, from the first that follows the warm-up to the last: what
lies between is everything that the loop does. The data were prepared once, beside the others'. The options ``keras`` (then
on which framework) and ``jax`` train the same model in these, with ``jit`` compiled by XLA as Keras' option says; with the option ``parts`` a clock in the workers says
where the time goes.
"""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import modelyard
from benchmarks.training_work import CLASSES, DECAY, RATE, Turn, read_data, read_turn, report
from modelyard.spec.records import AnyEvent, StepDone

_MODELS = """\
from benchmarks.training_parts import watch_ours
from benchmarks.training_work import WORKS, build

def transformer():
    return build(WORKS["transformer"])

def watched():
    return watch_ours(build(WORKS["{work}"]), "{found}", {warm_up})
"""
_OF_FRAMEWORK = """\
from benchmarks.{framework}_models import build

def of_framework():
    return build("{work}")
"""
_ARRAYS = """\
import numpy as np

def arrays():
    return np.load("../inputs.npy", mmap_mode="r"), np.load("../targets.npy", mmap_mode="r")
"""
_PROJECT = """\
[project]
name = "{work}"
[data]
{data}
split = {{ validation = 0.0, test = 0.0 }}
[model]
{model}
[train]
batch_size = {batch}
workers = {workers}
epochs = {epochs}
evaluate_every = 100000
optimizer = {{ name = "adamw", lr = {rate}, weight_decay = {decay} }}
schedule = {{ name = "constant", warmup = 0.0 }}
compile = {compile}
"""
FOUND = "parts.json"
_DATA = {
    "cnn": 'source = "images"\npath = "images"\nsize = [32, 32]',
    "mlp": 'source = "csv"\npath = "table.csv"\ntarget = "label"',
    "transformer": 'source = "arrays:arrays"',
}
_MODEL = {
    "cnn": 'build = "cnn-small"',
    "mlp": 'build = "mlp"\nargs = { hidden = [128, 64] }',
    "transformer": 'build = "models:transformer"',
}


def project(turn: Turn) -> Path:
    """A project folder with the same data in the form that ours reads, made once, and a project file of this turn."""
    folder = turn.place / "project"
    if not (folder / "arrays.py").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        _write_data(turn, folder)
        (folder / "arrays.py").write_text(_ARRAYS)
    work, watched = turn.work, "parts" in turn.options
    found = (folder / FOUND).resolve()
    found.unlink(missing_ok=True)
    models = _MODELS.format(work=work.name, found=found, warm_up=turn.warm_up)
    model = 'build = "models:watched"' if watched else _MODEL[work.name]
    if turn.options and not watched:
        models = _OF_FRAMEWORK.format(framework=turn.options[0], work=work.name)
        model = 'build = "models:of_framework"'
    (folder / "models.py").write_text(models)
    (folder / "yard.toml").write_text(
        _PROJECT.format(
            work=work.name,
            data=_DATA[work.name],
            model=model,
            batch=work.batch,
            workers=turn.workers,
            epochs=(turn.warm_up + turn.steps) * work.batch / work.samples,
            rate=RATE,
            compile="true" if "jit" in turn.options else '"auto"',
            decay=DECAY,
        )
    )
    return folder


def _write_data(turn: Turn, folder: Path) -> None:
    inputs, targets = read_data(turn.place)
    if turn.work.name == "cnn":
        for label in range(CLASSES):
            (folder / "images" / str(label)).mkdir(parents=True)
        for number, (pixels, label) in enumerate(zip(inputs, targets, strict=True)):
            image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
            image.save(folder / "images" / str(label) / f"{number}.png")
    if turn.work.name == "mlp":
        with (folder / "table.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow([*(f"x{place}" for place in range(inputs.shape[1])), "label"])
            for row, label in zip(inputs, targets, strict=True):
                table.writerow([*(f"{value:.6g}" for value in row), f"class-{label}"])


def train(turn: Turn) -> None:
    seen: list[StepDone] = []

    def observe(event: AnyEvent) -> None:
        if isinstance(event, StepDone):
            seen.append(event)

    if turn.options[:1] == ("keras",):
        os.environ["KERAS_BACKEND"] = turn.options[1]
    folder = project(turn)
    modelyard.prepare(folder)
    shutil.rmtree(
        folder / ".yard" / "runs", ignore_errors=True
    )  # else the finished run is returned
    modelyard.train(folder, observers=[observe])
    first = next(event for event in seen if event.step >= turn.warm_up)
    last = seen[-1]
    seconds = (last.time - first.time) * turn.steps / (last.step - first.step)
    parts = folder / FOUND
    more = {"parts": json.loads(parts.read_text())} if "parts" in turn.options else {}
    report(turn, seconds, last.loss, **more)


if __name__ == "__main__":
    train(read_turn())
