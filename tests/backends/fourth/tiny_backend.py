"""A whole backend of another package in one file: a perceptron with one hidden layer, in NumPy alone.

The one line that makes it known is in ``tiny_backend-1.0.dist-info/entry_points.txt``.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.backends.base import (
    Backend,
    Batch,
    OptimizerSettings,
    Snapshot,
    StepResult,
    StepSettings,
)
from modelyard.backends.exchange import Exchange, meet
from modelyard.spec.errors import ModelError
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import ImageInput, NaturalInput, Signature
from modelyard.spec.work import World
from modelyard.tasks.base import Task
from modelyard.tasks.numpy_ops import NumpyOps
from modelyard.tasks.own_loss import OwnLoss

Array = NDArray[Any]
ALONE = World(rank=0, size=1, rendezvous="")


class Perceptron:
    """What a project's function returns."""

    modelyard_backend = "tiny"

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        self.weights = {
            "first.kernel": np.random.normal(0, math.sqrt(2 / inputs), (inputs, hidden)),
            "first.bias": np.zeros(hidden),
            "last.kernel": np.random.normal(0, math.sqrt(1 / hidden), (hidden, outputs)),
            "last.bias": np.zeros(outputs),
        }


def build(input_shape: tuple[int, ...], outputs: int, hidden: int = 16) -> Perceptron:
    return Perceptron(math.prod(input_shape), hidden, outputs)


def slopes_of(loss: Callable[[Array], Array], outputs: Array) -> tuple[Array, Array]:
    """``loss`` at ``outputs`` and how it changes with each, looked at a little to both sides."""
    at, slopes, little = outputs.astype(np.float64), np.zeros_like(outputs), 1e-4
    for column in range(at.shape[1]):
        aside = np.zeros(at.shape[1])
        aside[column] = little
        slopes[:, column] = (loss(at + aside) - loss(at - aside)) / (2 * little)
    return loss(at), slopes


@dataclass
class State:
    weights: dict[str, Array]
    moments: dict[str, Array]
    settings: OptimizerSettings
    task: Task
    picture: NaturalInput | None


class Tiny(Backend):
    name = "tiny"
    ops = NumpyOps()

    def __init__(self) -> None:
        self._world, self._exchange = ALONE, Exchange(ALONE, {})

    @contextlib.contextmanager
    def join(self, world: World, *, device: str, threads: int) -> Iterator[str]:
        with meet(world) as self._exchange:
            self._world = world
            yield "cpu"
        self.__init__()

    def seed(self, value: int) -> None:
        np.random.seed(value % 2**32)

    def begin(
        self,
        model: object,
        task: TaskSpec,
        optimizer: OptimizerSettings,
        signature: Signature,
        input: NaturalInput | None = None,  # noqa: A002
        loss: OwnLoss | None = None,
    ) -> State:
        opened = self.opened(task, loss)
        weights = {k: v.astype(np.float32) for k, v in model.weights.items()}
        outputs = weights["last.bias"].size
        if outputs != opened.output_size:
            raise ModelError(
                f"the model gave (2, {outputs}), this task needs (2, {opened.output_size})",
                f"the last layer must have {opened.output_size} outputs",
            )
        for array in weights.values():
            if self._world.size > 1:
                self._exchange.copy_from_first(array)
        moments = {
            f"{name}.{moment}": np.zeros_like(array)
            for name, array in weights.items()
            for moment in ("first", "second")
        }
        moments["step"] = np.zeros((), np.float32)
        return State(weights, moments, optimizer, opened, input)

    def step(self, state: State, batch: Batch, settings: StepSettings) -> tuple[State, StepResult]:
        inputs = self._finished(state, batch.inputs)
        hidden, outputs = self._forward(state, inputs)
        losses, slopes = self._losses(state, outputs, batch)
        slopes /= batch.global_size
        back = slopes @ state.weights["last.kernel"].T * (hidden > 0)
        gradients = {
            "first.kernel": inputs.T @ back,
            "first.bias": back.sum(axis=0),
            "last.kernel": hidden.T @ slopes,
            "last.bias": slopes.sum(axis=0),
        }
        flat = np.concatenate([g.ravel() for g in gradients.values()]).astype(np.float32)
        self.before_exchange()
        self._exchange.add(flat)
        norm = float(np.linalg.norm(flat))
        if settings.clip_norm is not None:
            flat *= min(1.0, settings.clip_norm / (norm + 1e-6))
        sizes = np.cumsum([g.size for g in gradients.values()])[:-1]
        for name, gradient in zip(gradients, np.split(flat, sizes), strict=True):
            weights = state.weights[name]
            self._update(state, name, weights, gradient.reshape(weights.shape), settings)
        state.moments["step"] += 1
        return state, StepResult(loss=losses.sum() / batch.global_size, gradient_norm=norm)

    def evaluate(self, state: State, inputs: Array) -> NDArray[np.float32]:
        return self._forward(state, self._finished(state, inputs))[1].astype(np.float32)

    def differentiate(
        self, function: Callable[..., Any], outputs: Array, targets: Array
    ) -> tuple[Array, Array | None]:
        return slopes_of(lambda at: function(at, targets), outputs)

    def reduce(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.array(values, np.float64)
        self._exchange.add(total)
        return total

    def snapshot(self, state: State) -> Snapshot:
        tensors = {f"model.{k}": v.copy() for k, v in state.weights.items()}
        tensors |= {f"optimizer.{k}": v.copy() for k, v in state.moments.items()}
        return Snapshot(tensors=tensors, numbers={})

    def restore(self, state: State, snapshot: Snapshot) -> State:
        for prefix, own in (("model.", state.weights), ("optimizer.", state.moments)):
            for name, array in own.items():
                given = snapshot.tensors.get(prefix + name)
                if given is None and prefix == "optimizer.":
                    continue
                if given is None or given.shape != array.shape:
                    raise ModelError(f"{name} does not fit this model", "start a new run")
                array[...] = given
        return state

    def export(self, state: State, path: Path, signature: Signature) -> None:
        from onnx import TensorProto, checker, helper, numpy_helper, save

        given, answer = signature.inputs[0].name, signature.outputs[0].name
        nodes = [
            helper.make_node("Flatten", [given], ["flat"]),
            helper.make_node("Gemm", ["flat", "first.kernel", "first.bias"], ["sum"]),
            helper.make_node("Relu", ["sum"], ["hidden"]),
            helper.make_node("Gemm", ["hidden", "last.kernel", "last.bias"], [answer]),
        ]
        infos = [
            helper.make_tensor_value_info(t.name, TensorProto.FLOAT, ["batch", *t.shape[1:]])
            for t in (signature.inputs[0], signature.outputs[0])
        ]
        weights = [numpy_helper.from_array(array, name) for name, array in state.weights.items()]
        graph = helper.make_graph(nodes, "tiny", infos[:1], infos[1:], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        checker.check_model(model)
        save(model, path)

    def _forward(self, state: State, inputs: Array) -> tuple[Array, Array]:
        w = state.weights
        hidden = np.maximum(inputs @ w["first.kernel"] + w["first.bias"], 0)
        return hidden, hidden @ w["last.kernel"] + w["last.bias"]

    def _losses(self, state: State, outputs: Array, batch: Batch) -> tuple[Array, Array]:
        """Each sample's loss and its slope: the task's loss, looked at a little to both sides."""

        def loss(at: Array) -> Array:
            found = state.task.losses(self.ops, at, batch.targets)
            if batch.other_targets is None or batch.weight is None:
                return found
            others = state.task.losses(self.ops, at, batch.other_targets)
            return batch.weight * found + (1 - batch.weight) * others

        return slopes_of(loss, outputs)

    def _update(
        self, state: State, name: str, weights: Array, gradient: Array, settings: StepSettings
    ) -> None:
        chosen, rate = state.settings, settings.learning_rate
        decay = chosen.weight_decay if weights.ndim > 1 else 0.0
        first, second = state.moments[f"{name}.first"], state.moments[f"{name}.second"]
        if chosen.name == "sgd":
            first *= chosen.momentum
            first += gradient + decay * weights
            weights -= rate * first
            return
        step = float(state.moments["step"]) + 1
        if chosen.name == "adamw":
            weights *= 1 - rate * decay
        first += 0.1 * (gradient - first)
        second += 0.001 * (gradient * gradient - second)
        size = rate / (1 - 0.9**step)
        weights -= size * first / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)

    def _finished(self, state: State, inputs: Array) -> Array:
        if inputs.dtype == np.uint8:
            assert isinstance(state.picture, ImageInput)
            scale, shift = (
                np.array(v, np.float32).reshape(-1, 1, 1)
                for v in (state.picture.scale, state.picture.shift)
            )
            inputs = inputs.astype(np.float32) * scale + shift
        return inputs.reshape(len(inputs), -1)
