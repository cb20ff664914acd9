"""Which of a model's weights are trained, at which share of the learning rate and with which decay: by their names.

Patterns are those of ``fnmatch`` on names as they stand in a checkpoint, without ``model.``; ``*`` also
stands for dots and slashes. Framework-free: a backend gives names and numbers of axes, in the order of layers.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import msgspec

from modelyard.backends.base import OptimizerSettings
from modelyard.spec.errors import ModelError, TrainingError

_NUMBER = re.compile(r"_?\d+$")
_SHOWN = 5


class Treatment(msgspec.Struct, frozen=True, kw_only=True):
    """What an optimizer does with one weight."""

    trained: bool
    """False: no gradient, no optimizer state, no decay."""
    scale: float
    """Of the learning rate."""
    decay: float


def treatments(weights: Mapping[str, int], settings: OptimizerSettings) -> dict[str, Treatment]:
    """Of each weight (name to number of axes, from the first layer to the last), what ``settings`` ask for.

    Norms and biases, which have fewer than two axes, have no decay. Of several groups that match,
    the first counts. Raises TrainingError for a pattern that matches nothing, ModelError where
    nothing is left to train.
    """
    groups = settings.groups
    if settings.freeze and settings.lora is not None:
        raise TrainingError(
            "train.freeze means nothing beside train.lora, which trains nothing but its adapters",
            "take out one of the two; train.lora.also names what is trained whole",
        )
    _check("train.freeze", settings.freeze, weights)
    _check("train.optimizer.no_decay", settings.no_decay, weights)
    _check("train.optimizer.groups", [group.match for group in groups], weights)
    depth = _depths(weights) if settings.layer_decay != 1.0 else {}
    found = {}
    for name, axes in weights.items():
        group = next((g for g in groups if fnmatchcase(name, g.match)), None)
        scale = 1.0 if group is None else group.lr_scale
        decay = settings.weight_decay
        if group is not None and group.weight_decay is not None:
            decay = group.weight_decay
        if axes < 2 or _any(name, settings.no_decay):
            decay = 0.0
        found[name] = Treatment(
            trained=not _any(name, settings.freeze),
            scale=scale * settings.layer_decay ** depth.get(name, 0),
            decay=decay,
        )
    if found and not any(treatment.trained for treatment in found.values()):
        raise nothing_to_train("train.freeze matches all its weights")
    return found


def nothing_to_train(why: str) -> ModelError:
    """All weights are frozen."""
    return ModelError(
        f"the model has nothing to train: {why}",
        "leave at least the last layer out of train.freeze, and trainable in the model",
    )


def layers_of(weights: Mapping[str, int]) -> list[list[str]]:
    """The weights' names layer by layer, in their order.

    A layer is what stands under one number (``blocks.3``, ``dense_1`` beside ``dense``), else one
    module. Norms, and whatever else holds no matrix, belong to the layer before.
    """
    # Keras allows no dots in a layer's name: blocks_3_first is its way of writing blocks.3.first.
    parts = {name: re.split(r"[./]", re.sub(r"_(\d+)_", r".\1.", name)) for name in weights}
    numbered = _numbered(parts.values())
    layers: dict[tuple[str, ...], list[str]] = {}
    for name, steps in parts.items():
        layers.setdefault(_layer(steps, numbered), []).append(name)
    first = layers.pop((), [])  # weights of the model itself go with its first layer
    found: list[list[str]] = []
    for names in layers.values():
        if _has_matrix(names, weights):
            found.append([*first, *names])
            first = []
        elif found:
            found[-1] += names
        else:
            first += names
    return [*found, first] if first else found


def _depths(weights: Mapping[str, int]) -> dict[str, int]:
    """How many layers come after each weight's own."""
    layers = layers_of(weights)
    return {name: len(layers) - 1 - place for place, names in enumerate(layers) for name in names}


def _has_matrix(names: Iterable[str], weights: Mapping[str, int]) -> bool:
    return any(weights[name] >= 2 for name in names)


def _layer(steps: Sequence[str], numbered: set[tuple[str, ...]]) -> tuple[str, ...]:
    modules = tuple(steps[:-1])
    for end in range(1, len(modules) + 1):
        if modules[end - 1].isdigit():
            return modules[:end]
    for end in range(1, len(modules) + 1):
        if modules[:end] in numbered:
            return modules[:end]
    if modules:
        return modules
    number = _NUMBER.search(steps[0])  # plain names: w1, b1, w2, b2
    return (number.group().lstrip("_"),) if number else ()


def _numbered(paths: Iterable[Sequence[str]]) -> set[tuple[str, ...]]:
    """Modules that differ from one beside them by a number alone: ``conv1`` and ``conv2``."""
    families: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for steps in paths:
        for end in range(1, len(steps)):
            path = tuple(steps[:end])
            stem = (*path[:-1], _NUMBER.sub("", path[-1]))
            families.setdefault(stem, set()).add(path)
    return {path for family in families.values() if len(family) > 1 for path in family}


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check(field: str, patterns: Iterable[str], weights: Mapping[str, int]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in weights):
            raise TrainingError(
                f"{field}: {pattern!r} matches none of the model's {len(weights)} weights",
                f"names like it: {', '.join(_close(pattern, list(weights)))}; * stands for any letters",
            )


def _close(pattern: str, names: Sequence[str]) -> list[str]:
    """Names, and beginnings of names, that look like ``pattern``; else the first names."""
    wanted = pattern.strip("*./")
    beginnings = {
        name[: found.start()]: f"{name[: found.start() + 1]}*"
        for name in names
        for found in re.finditer(r"[./]", name)
    }
    known = {name: name for name in names} | beginnings
    close = difflib.get_close_matches(wanted, known, n=_SHOWN, cutoff=0.6)
    return [known[name] for name in close] or list(names[:_SHOWN])
