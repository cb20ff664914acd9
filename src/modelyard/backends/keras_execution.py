"""Where and how a Keras model's steps are computed: framework, threads, numbers, compiled or not; and errors."""

import contextlib
import importlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from modelyard.backends.base import Estimate, Execution
from modelyard.backends.keras_arrays import as_array
from modelyard.backends.keras_model import Subject, seed_values, set_precision
from modelyard.backends.keras_recompute import recompute_blocks
from modelyard.spec.errors import ModelError, OutOfMemory, TrainingError, YardError
from modelyard.spec.work import World

PROGRAMS = {
    "tensorflow": "modelyard.backends.keras_tensorflow",
    "jax": "modelyard.backends.keras_jax",
    "torch": "modelyard.backends.keras_torch",
}
"""Framework below Keras to the file that computes steps on it."""
_NO_MEMORY = ("out of memory", "resource_exhausted", "resourceexhausted", "can't allocate memory", "bad_alloc")  # fmt: skip
_GAIN, _SECONDS, _WORTH_COMPILING = 1.05, 0.3, 60.0
Reduce = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def framework() -> str:
    """What Keras stands on; raises TrainingError where it can train nothing."""
    name: str = keras.backend.backend()
    if name not in PROGRAMS:
        raise TrainingError(
            f"Keras stands on {name!r} (KERAS_BACKEND), on which a model can be neither trained nor distributed",
            f"set KERAS_BACKEND to one of: {', '.join(PROGRAMS)}",
        )
    return name


def choose_device(device: str, world: World) -> str:
    """The CPU: GPUs are left to the pytorch and jax backends, until someone has tried them here."""
    framework()
    if device not in ("auto", "cpu"):
        raise TrainingError(
            f"worker {world.rank} should use {device}, but the keras backend trains on the CPU only",
            'set train.device = "cpu", or return a PyTorch model',
        )
    return "cpu"


def computing(world: World, threads: int) -> AbstractContextManager[object]:
    """Inside, what Keras stands on computes with so many threads."""
    module: Any = importlib.import_module(PROGRAMS[framework()])
    inside: AbstractContextManager[object] = module.computing(world, threads)
    return inside


def differentiate(
    function: Callable[..., Any], outputs: NDArray[Any], targets: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """``function(outputs, targets)`` in what Keras stands on, and the slope of its sum by the outputs."""
    module: Any = importlib.import_module(PROGRAMS[framework()])
    found: tuple[NDArray[Any], NDArray[Any] | None]
    found = module.differentiate(function, outputs, targets)
    return found


def settle(
    subject: Subject, wanted: Execution, world: World, reduce: Reduce
) -> tuple[Execution, Any, tuple[str, ...]]:
    """``wanted`` without any ``"auto"``, the program that computes so, and what people should know of it."""
    _check(wanted, world, channels_last=subject.channels_last)
    module: Any = importlib.import_module(PROGRAMS[framework()])
    make, notes = module.Program, [f"Keras stands on {framework()}"]
    chosen = replace(
        wanted,
        precision="float32" if wanted.precision == "auto" else wanted.precision,
        compile=False if wanted.compile == "auto" else wanted.compile,
        channels_last=subject.channels_last,
        parallel="replicate",
        linear="blas",
    )
    if framework() == "jax":
        chosen = replace(chosen, compile=True)  # it always is
    if getattr(subject.model, "compiled", False):
        notes.append(
            "optimizer, loss and metrics are those of the project file, not of model.compile()"
        )
    if chosen.gradient_checkpointing:
        notes.append(recompute_blocks(subject.model))
    if chosen.precision == "bfloat16":
        set_precision(subject.model, "mixed_bfloat16")
    if wanted.compile == "auto" and make.can_compile:
        compiled, words = _measured(subject, make, chosen, reduce)
        chosen = replace(chosen, compile=compiled)
        notes.append(words)
    return chosen, make(subject, compiled=chosen.compile is True), tuple(notes)


def _check(wanted: Execution, world: World, *, channels_last: bool) -> None:
    if wanted.precision == "float16":
        raise TrainingError(
            'the keras backend has no train.precision = "float16"', 'use "bfloat16" or "float32"'
        )
    if wanted.parallel == "shard" and world.size > 1:
        raise TrainingError(
            'the keras backend has no train.parallel = "shard"',
            'use "replicate", or return a PyTorch model',
        )
    if wanted.linear in ("onednn", "mixed"):
        raise TrainingError(
            f'the keras backend has no train.linear = "{wanted.linear}"',
            'set train.linear = "auto"',
        )
    if isinstance(wanted.channels_last, bool) and wanted.channels_last != channels_last:
        raise TrainingError(
            "the keras backend has no train.channels_last: the model's keras.Input says its order, "
            f"which is channels {'last' if channels_last else 'first'}",
            'set train.channels_last = "auto"',
        )
    if wanted.compile is True and framework() == "torch":
        raise TrainingError(
            "the keras backend does not compile on PyTorch (KERAS_BACKEND=torch)",
            "set train.compile = false, or KERAS_BACKEND to tensorflow or jax",
        )


def _measured(subject: Subject, make: Any, chosen: Execution, reduce: Reduce) -> tuple[bool, str]:
    """Forward and backward pass in turns, compiled by XLA and not; the workers' times are added up."""
    count = chosen.micro_batch or chosen.samples
    inputs = np.zeros((count, *subject.shape), subject.dtype)
    answers = (np.zeros(count, _target_type(subject)),)
    seeds = seed_values(subject, 0)
    before = [as_array(v.value) for v in subject.names.values()]
    times: dict[bool, list[float]] = {False: [], True: []}
    programs = {kind: make(subject, compiled=kind) for kind in times}

    def once(kind: bool) -> float:
        began = time.perf_counter()
        loss, _ = programs[kind].gradients(inputs, answers, seeds, count)
        float(loss)
        return time.perf_counter() - began

    plain = min(once(False) for _ in range(3))
    total = reduce(np.array([plain])) / reduce(np.array([1.0]))
    if float(total[0]) * chosen.steps < _WORTH_COMPILING:
        said = False, "not compiled: the whole training takes less than a minute"
    else:
        once(True)
        for _ in range(max(3, round(_SECONDS / plain / 2))):
            for kind, found in times.items():
                found.append(once(kind))
        middles = reduce(np.array([float(np.median(times[kind])) for kind in (False, True)]))
        ratio = float(middles[0] / middles[1])
        better = ratio >= _GAIN
        said = (
            better,
            f"{'compiled' if better else 'not compiled'}: {ratio:.2f} times as fast with XLA",
        )
    for variable, array in zip(subject.names.values(), before, strict=True):
        variable.assign(array)
    return said


def _target_type(subject: Subject) -> str:
    return "int64" if subject.task.spec.classes else "float32"


@contextlib.contextmanager
def explain(world: World, device: str) -> Iterator[None]:
    """Inside, what the framework raises becomes an error for people."""
    try:
        yield
    except YardError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {(lines or ['no reason given'])[0]}"
        text = reason.lower()
        if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
            raise OutOfMemory(
                f"out of memory on {device} (worker {world.rank}): {reason}",
                "use a smaller train.batch_size or train.micro_batch, more train.workers or a smaller model",
                device,
            ) from error
        raise ModelError(
            f"the model raised {reason}", "run `yard check`, which tries the model on a real batch"
        ) from error


def estimate(
    subject: Subject, execution: Execution, samples: int, step: Callable[[], None]
) -> Estimate:
    """Weights are counted, activations added up from the shapes of the layers' outputs, seconds measured."""
    weights = sum(int(np.prod(v.shape)) * 4 for v in subject.names.values())
    trained = sum(int(np.prod(v.shape)) * 4 for v in subject.trainable)
    count = min(execution.micro_batch or samples, samples)
    kept = 0
    for layer in subject.model.layers:
        shape = getattr(getattr(layer, "output", None), "shape", ()) if layer.built else ()
        kept += int(np.prod([size or 1 for size in shape[1:]])) * 4 * count if shape else 0
    step()  # what is made once (graphs) is not timed
    times = []
    for _ in range(3):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return Estimate(
        parameters=weights,
        gradients=trained,
        optimizer=trained * len(subject.rule.slots),
        activations=kept,
        step_seconds=sorted(times)[1],
    )


def machine_memory() -> str:
    """``cpu, 24 GiB``: what fits into one fits into another of the same words."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system says
        return "cpu"
    return f"cpu, {round(memory / 2**30)} GiB"
