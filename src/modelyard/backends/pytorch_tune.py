"""Choosing by measuring: number format, memory order, compilation and dense layers, on this model and this device.

Each question is settled in turn: both answers run the forward and backward pass in turns for a
moment, on every worker at once, as they will in training, and the workers' times are added up, so that all choose alike.
The weights are not changed. What was chosen is written into the run, and a resumed run does not measure again.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from msgspec.structs import replace
from torch import nn

from modelyard.backends import pytorch_linear as linear
from modelyard.backends.base import Execution
from modelyard.backends.pytorch_errors import is_out_of_memory
from modelyard.backends.pytorch_precision import (
    Precision,
    half_precision,
    is_convolutional,
    order_weights,
)
from modelyard.spec.errors import ModelError, TrainingError, YardError

SECONDS = 0.4
"""About how long one question is measured."""
_GAIN = {"channels_last": 1.03, "precision": 1.10, "compile": 1.05}
"""How many times faster an answer must be to be worth leaving the plain one."""
_WORTH_COMPILING = 60.0
"""Seconds that a whole training must take for compilation to be tried at all."""
Reduce = Callable[[Sequence[float]], list[float]]


@dataclass(frozen=True)
class Subject:
    """What is measured."""

    model: nn.Module
    call: nn.Module
    """The model, or what a guest is called through."""
    shape: tuple[int, ...]
    """Of one sample."""
    dtype: torch.dtype
    """Of the tensor that the model takes."""
    device: torch.device
    reduce: Reduce
    """Adds numbers over all workers."""


def settle(wanted: Execution, subject: Subject) -> tuple[Execution, tuple[str, ...]]:
    """``wanted`` without any ``"auto"``, and what was measured, in words. All workers must call it.

    Raises TrainingError where dense layers are asked for by a library that cannot compute them.
    """
    chosen, said = _format(wanted, subject)
    chosen, more = _dense(wanted, chosen, subject)
    return chosen, (*said, *more)


def _dense(
    wanted: Execution, chosen: Execution, subject: Subject
) -> tuple[Execution, tuple[str, ...]]:
    """Which library computes the large dense layers: their shapes are taken from one pass, and measured."""
    possible = (
        linear.available(subject.device)
        and (chosen.precision, chosen.compile, chosen.parallel) == ("float32", False, "replicate")
    )  # fmt: skip
    if wanted.linear in linear.KINDS and not possible:
        raise TrainingError(
            f'train.linear = "{wanted.linear}" is for steps in float32 on a CPU, not compiled and not sharded; here '
            f"it is {chosen.precision} on {subject.device}, compile = {str(chosen.compile is True).lower()}, "
            f'parallel = "{chosen.parallel}"',
            'set train.linear = "auto" or "blas"',
        )
    if wanted.linear != "auto":
        return chosen, ()
    plain = replace(chosen, linear="blas")
    if not possible or not any(p.ndim == 2 for p in subject.model.parameters()):
        return plain, ()
    shapes = linear.Shapes()
    with _unchanged(subject.model):
        run = _Run(plain, subject)
        order_weights(subject.model, channels_last=plain.channels_last is True)
        with shapes:
            run._pass()
    workers, *sums = subject.reduce([1.0, *linear.seconds_of(shapes.seen)])
    ever, onednn, mixed = (total / workers for total in sums)
    way = linear.faster(ever, onednn, mixed)
    if way == "onednn":
        said = f"dense layers by oneDNN: {1e3 * onednn:.2f} ms"
    else:
        said = f"dense layers by oneDNN, their weights' gradients by BLAS: {1e3 * mixed:.2f} ms"
    words = f"{said} a step, against {1e3 * ever:.2f} ms by BLAS"
    return replace(plain, linear=way), () if way == "blas" else (words,)


def _format(wanted: Execution, subject: Subject) -> tuple[Execution, tuple[str, ...]]:
    """Number format, memory order and compilation."""
    plain = replace(
        wanted,
        precision="float32" if wanted.precision == "auto" else wanted.precision,
        compile=False if wanted.compile == "auto" else wanted.compile,
        channels_last=is_convolutional(subject.model)
        if wanted.channels_last == "auto"
        else wanted.channels_last,
    )
    if "auto" not in (wanted.precision, wanted.compile):
        return plain, ()
    if wanted.parallel == "shard":
        chosen = half_precision(subject.device) if wanted.precision == "auto" else None
        # Nothing is measured: what is to be sharded may not fit whole.
        return replace(plain, precision=chosen or plain.precision), ()
    return _measured(wanted, plain, subject)


def _measured(
    wanted: Execution, chosen: Execution, subject: Subject
) -> tuple[Execution, tuple[str, ...]]:
    said = []
    with _unchanged(subject.model):
        if wanted.channels_last == "auto" and is_convolutional(subject.model):
            first, second = (replace(chosen, channels_last=order) for order in (False, True))
            chosen, words, _ = _faster(first, second, "channels_last", subject)
            said.append(words)
        half = half_precision(subject.device)
        if wanted.precision == "auto" and half is not None:
            other = replace(chosen, precision=half)
            chosen, words, _ = _faster(chosen, other, "precision", subject)
            said.append(words)
        if wanted.compile == "auto":
            chosen, words = _compiled_or_not(chosen, subject)
            said.append(words)
        order_weights(subject.model, channels_last=chosen.channels_last is True)
    return chosen, tuple(said)


def _compiled_or_not(chosen: Execution, subject: Subject) -> tuple[Execution, str]:
    (eager,) = _times([chosen], subject)
    if eager * chosen.steps < _WORTH_COMPILING:
        return chosen, "not compiled: the whole training takes less than a minute"
    other = replace(chosen, compile=True)
    chosen, words, fastest = _faster(chosen, other, "compile", subject)
    return chosen, words if fastest < float("inf") else "not compiled: that failed here"


def _faster(
    plain: Execution, other: Execution, field: str, subject: Subject
) -> tuple[Execution, str, float]:
    """The better of two, the words for it, and the other's seconds a step."""
    first, second = _times([plain, other], subject)
    chosen = other if second * _GAIN[field] < first else plain
    words = f"{_WORDS[field](chosen)}: {second * 1e3:.2f} ms a step, against {first * 1e3:.2f} ms"
    if chosen is plain:
        words = (
            f"{_WORDS[field](chosen)}: {first * 1e3:.2f} ms a step, against {second * 1e3:.2f} ms"
        )
    return chosen, words, second


_WORDS: dict[str, Callable[[Execution], str]] = {
    "channels_last": lambda e: "channels-last" if e.channels_last else "channels-first",
    "precision": lambda e: e.precision,
    "compile": lambda e: "compiled" if e.compile else "not compiled",
}


def _times(candidates: Sequence[Execution], subject: Subject) -> list[float]:
    """Seconds of a forward and backward pass of each, the mean over workers; infinite where it fails."""
    runs = [_Run(candidate, subject) for candidate in candidates]
    for run in runs:
        run.warm()
    slowest = max([run.once() for run in runs if not run.failed], default=0.0)
    rounds = subject.reduce([min(max(SECONDS / max(slowest, 1e-6), 3.0), 40.0)])[0]
    workers = subject.reduce([1.0])[0]
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(int(rounds / workers)):
        for run, found in zip(runs, times, strict=True):
            found.append(run.once())
    return [total / workers for total in subject.reduce([statistics.median(t) for t in times])]


class _Run:
    """One candidate's forward and backward pass."""

    def __init__(self, candidate: Execution, subject: Subject) -> None:
        self.failed = False
        self._candidate, self._subject = candidate, subject
        self._precision = Precision(candidate.precision, subject.device)
        self._call: Callable[..., Any] = subject.call
        if candidate.compile:
            self._call = compiled(subject.call)
        count = min(candidate.micro_batch or candidate.samples, candidate.samples)
        self._inputs = _sample_inputs(count, subject, candidate)

    def warm(self) -> None:
        for _ in range(3):
            self.once()

    def once(self) -> float:
        if self.failed:
            return float("inf")
        order_weights(self._subject.model, channels_last=self._candidate.channels_last is True)
        began = time.perf_counter()
        try:
            self._pass()
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error) and not self._candidate.compile:
                raise
            self.failed = True
            return float("inf")
        return time.perf_counter() - began

    def _pass(self) -> None:
        with self._precision.forward():
            outputs = self._call(self._inputs)
        outputs.float().square().mean().backward()
        for parameter in self._subject.model.parameters():
            parameter.grad = None
        if self._subject.device.type == "cuda":
            torch.cuda.synchronize(self._subject.device)


def compiled(call: nn.Module) -> Callable[..., Any]:
    """``call`` compiled for each shape by itself, so that a shape always means the same arithmetic."""
    function: Callable[..., Any] = torch.compile(call, dynamic=False)
    return function


def warm_up(run: Callable[..., Any], execution: Execution, subject: Subject) -> None:
    """Compile now what the first step would compile. Raises ModelError where it cannot be done."""
    trial = _Run(replace(execution, compile=False), subject)
    trial._call = run
    try:
        with _unchanged(subject.model):
            trial._pass()
    except YardError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ModelError(
            f"the model could not be compiled: {type(error).__name__}: {reason}",
            "set train.compile = false; on a CPU it also needs a C++ compiler such as g++",
        ) from error


def _sample_inputs(count: int, subject: Subject, execution: Execution) -> torch.Tensor:
    """Inputs that any model takes: a grey pixel, a feature, the number of some token."""
    value = 1 if subject.dtype == torch.int64 else 0.5
    inputs = torch.full((count, *subject.shape), value, dtype=subject.dtype, device=subject.device)
    if execution.channels_last is True and inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    return inputs


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Buffers and random numbers afterwards are as they were; no gradient is left."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    training = model.training
    with torch.random.fork_rng():
        model.train()
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)
            for parameter in model.parameters():
                parameter.grad = None
            model.train(training)
