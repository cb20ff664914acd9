"""A Keras model as the backend sees it: what it takes and gives, its variables by name, its random numbers."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from modelyard.backends.base import OptimizerSettings
from modelyard.backends.keras_input import (
    LAST,
    finishing,
    given_form,
    tensors_of,
    tried,
    turned,
)
from modelyard.backends.keras_lora import add_adapters
from modelyard.backends.keras_optimizer import Rule, choose_rule
from modelyard.backends.parameter_rules import Treatment, nothing_to_train, treatments
from modelyard.spec.signature import NaturalInput, Signature
from modelyard.tasks.base import Task
from modelyard.tasks.parts import Part, parts_of

Tensor = Any
Variable = Any
HELD = "held_still"
"""Attribute of a model that is to be trained as it is judged."""


class KerasOps:
    """The maths of losses, on the tensors of whichever framework Keras stands on."""

    log_softmax = staticmethod(lambda x: ops.log_softmax(x, axis=-1))
    log_sigmoid = staticmethod(ops.log_sigmoid)
    square = staticmethod(ops.square)
    exp = staticmethod(ops.exp)
    absolute = staticmethod(ops.absolute)
    power = staticmethod(ops.power)
    minimum = staticmethod(ops.minimum)
    mean_last = staticmethod(lambda x: ops.mean(x, axis=-1))
    reshape = staticmethod(ops.reshape)

    @staticmethod
    def take(x: Tensor, index: Tensor) -> Tensor:
        if keras.backend.backend() == "tensorflow":  # where Keras makes some sixty operations of it
            places = ops.arange(x.shape[-1], dtype=index.dtype)
            chosen = ops.equal(places, ops.expand_dims(index, -1))
            return ops.sum(ops.where(chosen, x, ops.zeros_like(x)), axis=-1)
        return ops.squeeze(ops.take_along_axis(x, ops.expand_dims(index, -1), axis=-1), -1)

    @staticmethod
    def lookup(values: Sequence[float], index: Tensor) -> Tensor:
        return ops.take(ops.convert_to_tensor(values, "float32"), index, axis=0)


@dataclass(frozen=True)
class Subject:
    """What the programs of each framework are made from."""

    model: Any
    task: Task
    rule: Rule
    trainable: tuple[Variable, ...]
    treated: tuple[Treatment, ...]
    """How each of ``trainable`` is."""
    statistics: tuple[Variable, ...]
    """Running means and variances, which workers average."""
    others: tuple[Variable, ...]
    """What else a forward pass may change; worker 0's is everybody's."""
    seeds: tuple[Variable, ...]
    """States of the model's random generators."""
    names: dict[str, Variable]
    """Of all that is kept in a checkpoint."""
    adapted: str
    """In words, where there are adapters."""
    fixed: frozenset[int]
    """Identities of the weights below them, which are in no checkpoint."""
    training: bool
    """Whether steps call the model as in training; not where it is held still."""
    channels_last: bool
    """The model wants a pixel's channels side by side, which samples have not."""
    finish: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    """Scale and shift that make model form from pictures as they are stored."""
    shape: tuple[int, ...]
    """Of one sample."""
    dtype: str
    """Of what the model takes."""
    parts: tuple[Part, ...] = ()
    """Of samples of several parts; a sample is a row of bytes then."""

    def prepared(self, inputs: Tensor) -> Tensor:
        """In model form and in the model's own order of axes, inside a program.

        Of samples of several parts from rows of bytes, or from a dict of tensors in model form.
        """
        if self.parts:
            several = isinstance(inputs, dict)
            named = inputs if several else tensors_of(inputs, self.parts)
            return turned(named) if self.channels_last else named
        if "uint8" in str(inputs.dtype):
            if self.finish is None:
                raise ValueError("uint8 inputs need the `input` that begin() was not given")
            scale, shift = (ops.convert_to_tensor(part) for part in self.finish)
            if self.channels_last:  # turned before they take four bytes each
                inputs = ops.transpose(inputs, LAST)
                scale, shift = (ops.reshape(part, (-1,)) for part in (scale, shift))
            return ops.cast(inputs, "float32") * scale + shift
        return ops.transpose(inputs, LAST) if self.channels_last else inputs

    def loss(self, outputs: Tensor, answers: Sequence[Tensor], size: Tensor) -> Tensor:
        """This worker's part of the global mean loss; what layers add to it counts by share."""
        outputs = ops.cast(outputs, "float32")
        losses = self.task.losses(KerasOps(), outputs, answers[0])
        if len(answers) > 1:  # of a blend of two, each label's loss by its share
            others = self.task.losses(KerasOps(), outputs, answers[1])
            losses = others + (losses - others) * answers[2]
        return ops.sum(losses) / size


def subject_of(
    model: Any,
    task: Task,
    settings: OptimizerSettings,
    signature: Signature,
    spec: NaturalInput | None,
) -> Subject:
    """Raises ModelError for a model that does not fit, TrainingError for an unknown optimizer."""
    last = tried(model, signature, task.output_size)
    parts = parts_of(signature, spec)
    shape, dtype = given_form(signature, parts)
    adapted, fixed = "", frozenset[int]()
    if settings.lora is not None:
        adapted, fixed = add_adapters(model, list(layers_of(model)), names_of(model), settings.lora)
    names = names_of(model)
    treated = _treat(model, names, settings)
    trainable = tuple(model.trainable_variables)
    if not trainable:
        raise nothing_to_train("all its layers are frozen")
    known = {id(variable) for variable in trainable}
    statistics = tuple(v for v in _statistics(model) if id(v) not in known)
    known |= {id(variable) for variable in statistics}
    frozen = {id(v) for layer in layers_of(model) if not layer.trainable for v in layer.weights}
    # What was made to be trained is changed by steps alone, and so by nobody where it is frozen.
    frozen |= {id(v) for layer in layers_of(model) for v in layer._trainable_variables}
    others = tuple(v for v in names.values() if id(v) not in known | frozen | fixed)
    return Subject(
        model=model,
        task=task,
        rule=choose_rule(settings),
        trainable=trainable,
        treated=tuple(treated[id(v)] for v in trainable),
        statistics=statistics,
        others=others,
        seeds=tuple(_seeds(model)),
        names={name: v for name, v in names.items() if id(v) not in fixed},
        adapted=adapted,
        fixed=fixed,
        training=not getattr(model, HELD, False),
        channels_last=last,
        finish=finishing(spec),
        shape=shape,
        dtype=dtype,
        parts=parts,
    )


def _treat(
    model: Any, names: dict[str, Variable], settings: OptimizerSettings
) -> dict[int, Treatment]:
    """How each variable is treated, by its id; those to be frozen are, from here on.

    A batch norm that ``settings`` freeze as a whole computes as in service, and its running statistics stay too.
    """
    treated = treatments({name: len(v.shape) for name, v in names.items()}, settings)
    frozen = {id(names[name]) for name, one in treated.items() if not one.trained}
    for variable in names.values():
        if id(variable) in frozen:
            variable.trainable = False
    for layer in layers_of(model) if frozen else ():
        own = {id(v) for v in layer._trainable_variables}
        if isinstance(layer, keras.layers.BatchNormalization) and own and own <= frozen:
            layer.trainable = False
    return {id(variable): treated[name] for name, variable in names.items()}


def names_of(model: Any) -> dict[str, Variable]:
    """Every weight under the name that it has in a program that builds this model first.

    Keras counts the layers of a process (``dense_7``); counted within the model they are the same
    in every process.
    """
    bases = {_snake(type(layer).__name__) for layer in layers_of(model)}
    counted: dict[str, dict[str, str]] = {}

    def plain(segment: str) -> str:
        base = re.sub(r"_\d+$", "", segment)
        if base not in bases:
            return segment
        seen = counted.setdefault(base, {})
        return seen.setdefault(segment, base if not seen else f"{base}_{len(seen)}")

    found: dict[str, Variable] = {}
    for variable in model.weights:
        path = name = "/".join(plain(segment) for segment in variable.path.split("/"))
        while name in found:
            name = f"{path}~{len([key for key in found if key.startswith(path)])}"
        found[name] = variable
    return found


def _snake(name: str) -> str:
    """As Keras names layers: ``LayerNormalization`` -> ``layer_normalization``, ``Conv2D`` -> ``conv2d``."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def layers_of(model: Any) -> Iterator[Any]:
    """The model and all in it, also the layers within layers."""
    waiting, seen = [model], set()
    while waiting:
        layer = waiting.pop()
        if id(layer) not in seen:
            seen.add(id(layer))
            yield layer
            waiting += [inner for inner in getattr(layer, "_layers", ()) if inner is not None]


def _statistics(model: Any) -> Iterator[Variable]:
    """Running statistics of batch norms: what has ``moving_…`` in its name and is not trained."""
    for layer in layers_of(model):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            yield from layer.non_trainable_weights


def _seeds(model: Any) -> Iterator[Variable]:
    weights = {id(variable) for variable in model.weights}
    for variable in model.variables:
        if id(variable) not in weights and variable.path.endswith("seed_generator_state"):
            yield variable


def seed_values(subject: Subject, seed: int) -> NDArray[np.int64]:
    """A state for each generator, (generators, 2): from ``seed`` alone, and another for each."""
    if not subject.seeds:
        return np.zeros((0, 2), np.int64)
    numbers = np.random.SeedSequence(seed).generate_state(2 * len(subject.seeds))
    return (numbers.astype(np.int64) & 0x3FFFFFFF).reshape(-1, 2)


def set_precision(model: Any, policy: str) -> Callable[[], None]:
    """Let all layers compute by ``policy``; what is returned puts it back. Weights stay float32."""
    before = [(layer, layer.dtype_policy) for layer in layers_of(model)]
    for layer, _ in before:
        layer.dtype_policy = policy

    def back() -> None:
        for layer, own in before:
            layer.dtype_policy = own

    return back
