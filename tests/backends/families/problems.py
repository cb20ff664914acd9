"""Small real problems for the model families, and how a backend is let learn one."""

import inspect
import json
import pydoc
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from modelyard.backends import open_backend
from modelyard.backends.base import Backend, Batch, OptimizerSettings, State, StepSettings
from modelyard.backends.source import build_model
from modelyard.data.text import WordCount, encode_texts, split_words
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import (
    CategoricalColumn,
    ImageInput,
    MixedInput,
    NaturalInput,
    NumericColumn,
    TableInput,
    TensorInput,
    TextInput,
)
from modelyard.spec.work import World
from modelyard.tasks import open_task
from modelyard.tasks.parts import by_name, finished_parts, pack
from modelyard.tasks.signature import signature_of

LIMIT = 1e-4
"""How far the ONNX file's answers may be from the framework's."""


@dataclass(frozen=True)
class Problem:
    """Samples of which the last fifth is held out."""

    natural: NaturalInput
    task: TaskSpec
    inputs: NDArray[Any]
    targets: NDArray[Any]


@cache
def digits(*shape: int) -> Problem:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, in that shape."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pixels = (found.data[order] / 8 - 1).astype(np.float32).reshape(-1, *shape)
    classes = tuple(map(str, range(10)))
    return Problem(TensorInput(shape=shape), _task(classes), pixels, found.target[order].astype(np.int64))  # fmt: skip


@cache
def prose_or_code() -> Problem:
    """Python's own manual against its source, in pieces of 5 to 30 words."""
    texts = "\n".join(topics[key] for key in sorted(topics)), "".join(map(inspect.getsource, _CODE))
    pieces = [_pieces(split_words(text)) for text in texts]
    count = min(map(len, pieces))
    counted = WordCount()
    counted.add(text for side in pieces for text in side)
    spec = TextInput(length=30, tokens="words", words=counted.most(200))
    order = np.random.default_rng(0).permutation(2 * count)
    tokens = encode_texts(spec, [*pieces[0][:count], *pieces[1][:count]])[order].astype(np.int64)
    return Problem(spec, _task(("prose", "code")), tokens, (order >= count).astype(np.int64))


_CODE = (pydoc, inspect, json.decoder)


def _pieces(words: list[str]) -> list[str]:
    """The first 20,000 words of a text, cut where chance wants it."""
    cuts = np.cumsum(np.random.default_rng(0).integers(5, 31, 1_000))
    ends = pairwise(int(cut) for cut in cuts[cuts < min(len(words), 20_000)])
    return [" ".join(words[start:end]) for start, end in ends]


@cache
def ratings() -> Problem:
    """30 users rate 20 items: each has two tastes, and what is rated is their product, and age a little."""
    generator = np.random.default_rng(0)
    tastes, kinds = generator.normal(size=(30, 2)), generator.normal(size=(20, 2))
    pairs = np.stack(np.meshgrid(np.arange(30), np.arange(20)), -1).reshape(-1, 2)
    pairs = pairs[generator.permutation(len(pairs))]
    age = generator.normal(size=30)
    stars = (tastes[pairs[:, 0]] * kinds[pairs[:, 1]]).sum(1) + 0.3 * age[pairs[:, 0]]
    columns = (
        CategoricalColumn(name="user", categories=tuple(f"u{n}" for n in range(30))),
        NumericColumn(name="age", fill=0.0, mean=0.0, std=1.0),
        CategoricalColumn(name="item", categories=tuple(f"i{n}" for n in range(20))),
    )
    rows = np.concatenate(
        [np.eye(30)[pairs[:, 0]], age[pairs[:, 0], None], np.eye(20)[pairs[:, 1]]], axis=1
    )
    task = TaskSpec(type="regression", target="stars", loss="mean-squared-error")
    return Problem(
        TableInput(columns=columns), task, rows.astype(np.float32), stars.astype(np.float32)
    )


@cache
def cards() -> Problem:
    """A written 0 or 1, a sentence for or against, and a number: its class is all three, and none tells the others."""
    found = load_digits()
    pictures = found.data[found.target < 2].reshape(-1, 1, 8, 8) / 16
    count, generator = len(pictures), np.random.default_rng(0)
    order = generator.permutation(count)
    written = found.target[found.target < 2][order]
    words, signs = generator.integers(0, 2, (2, count))
    mood = (("good", "fine", "new"), ("bad", "broken", "old"))
    texts = [f"it is {generator.choice(mood[word])} and so on" for word in words]
    image = ImageInput(height=8, width=8, color="grey", mean=(0.3,), std=(0.4,))
    counted = WordCount()
    counted.add(texts)
    text = TextInput(length=6, tokens="words", words=counted.most(20))
    table = TableInput(columns=(NumericColumn(name="price", fill=0.0, mean=0.0, std=1.0),))
    spec = MixedInput(image=image, text=text, table=table, image_column="card", text_column="said")
    prices = generator.normal(size=(count, 1)) * 0.3 + 2 * signs[:, None] - 1
    rows = pack(
        finished_parts(spec),
        {
            "image": (pictures[order] - 0.3) / 0.4,
            "text": encode_texts(text, texts),
            "table": prices,
        },
    )
    classes = tuple(f"{a}{b}{c}" for a in range(2) for b in range(2) for c in range(2))
    return Problem(spec, _task(classes), rows, (4 * written + 2 * words + signs).astype(np.int64))


def _task(classes: tuple[str, ...]) -> TaskSpec:
    return TaskSpec(type="classification", target="label", loss="cross-entropy", classes=classes)


@dataclass(frozen=True)
class Lesson:
    """A family, what it is told, the problem, and how long it may take."""

    family: str
    args: dict[str, Any]
    problem: Problem
    steps: int = 60
    rate: float = 0.01
    good: float = 0.9
    """Accuracy on what was held out; for numbers, the share of their variance that is explained."""


def lessons() -> dict[str, Lesson]:
    """By a name for each: the family, or the family and what is special."""
    small = {"width": 32, "heads": 2, "layers": 1, "hidden": 64}
    towers = {"left": ["user", "age"], "right": ["item"], "width": 8}
    found = [
        Lesson("mlp", {}, digits(64)),
        Lesson("cnn", {"channels": [8, 16], "hidden": 32}, digits(1, 8, 8)),
        Lesson("resnet", {"widths": [8, 16], "blocks": 1}, digits(1, 8, 8), good=0.8),
        Lesson("text-small", {"width": 16}, prose_or_code(), good=0.85),
        Lesson("rnn", {"kind": "lstm", "width": 32}, digits(8, 8), steps=150, good=0.85),
        Lesson("transformer-encoder", small, prose_or_code()),
        Lesson("transformer-decoder", small, digits(8, 8), steps=150, good=0.8),
        Lesson("fusion", {"width": 16, "channels": [8, 16], "hidden": 32}, cards()),
        Lesson("two-tower", towers, ratings(), steps=150, rate=0.02, good=0.8),
    ]
    tokens = Lesson("rnn", {"kind": "gru", "width": 16}, prose_or_code(), good=0.85)
    return {lesson.family: lesson for lesson in found} | {"rnn of tokens": tokens}


def taught(framework: str, lesson: Lesson, path: Path) -> tuple[float, float]:
    """How good the model is on what was held out, and how far its ONNX file's answers are from its own."""
    backend, problem = open_backend(framework), lesson.problem
    signature = signature_of(problem.natural, problem.task)
    backend.seed(0)
    with backend.join(World(rank=0, size=1, rendezvous=""), device="cpu", threads=1):
        model = built(framework, lesson)
        settings = OptimizerSettings(name="adam")
        state = backend.begin(model, problem.task, settings, signature)
        for step, batch in enumerate(_batches(lesson)):
            settings_now = StepSettings(learning_rate=lesson.rate, seed=step)
            state, _ = backend.step(state, batch, settings_now)
        backend.export(state, path, signature)
        return _score(backend, state, problem), _distance(backend, state, problem, path)


def built(framework: str, lesson: Lesson) -> Any:
    """As a project's file would name it."""
    problem = lesson.problem
    name = lesson.family if framework == "pytorch" else f"{framework}/{lesson.family}"
    signature = signature_of(problem.natural, problem.task)
    return build_model(
        Path(), name, lesson.args, signature, problem.task, natural=problem.natural
    )  # fmt: skip


def _batches(lesson: Lesson) -> Iterator[Batch]:
    generator, size = np.random.default_rng(0), 64
    inputs, targets = lesson.problem.inputs, lesson.problem.targets
    for _ in range(lesson.steps):
        rows = generator.integers(0, _kept(lesson.problem), size)
        yield Batch(inputs=inputs[rows], targets=targets[rows], global_size=size)


def _kept(problem: Problem) -> int:
    return len(problem.targets) * 4 // 5


def _score(backend: Backend, state: State, problem: Problem) -> float:
    start = _kept(problem)
    outputs = backend.evaluate(state, problem.inputs[start:])
    targets, task = problem.targets[start:], open_task(problem.task)
    found = task.metrics(task.statistics(outputs, targets))
    if "accuracy" in found:
        return found["accuracy"]
    return 1 - float(np.mean((outputs[:, 0] - targets) ** 2) / np.var(targets))


def _distance(backend: Backend, state: State, problem: Problem, path: Path) -> float:
    signature = signature_of(problem.natural, problem.task)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    gaps = []
    for count in (1, 17):
        inputs = problem.inputs[:count]
        (found,) = session.run(["output"], by_name(signature, inputs))
        assert found.dtype == np.float32
        gaps.append(float(np.abs(found - backend.evaluate(state, inputs)).max()))
    return max(gaps)
