"""The model families that come with Modelyard, as a table: what each is for, takes and may be told.

Nothing here imports a framework. A family is the same architecture in PyTorch, Keras and JAX: the same
layers in the same order with as many parameters, begun by the same rules, so that the same weights
give the same outputs. Pictures come as (channels, height, width) and are flattened in that order in all
three. Unless a family says otherwise, kernels and biases of dense and convolutional layers begin uniform
in ±1/√(inputs of one output), which is PyTorch's rule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from modelyard.backends.families.arguments import Arg, count, counts, names, share, word
from modelyard.spec.errors import ModelError, did_you_mean

FRAMEWORKS = ("pytorch", "keras", "jax")
"""Backends that families are written for; the first is meant where none is named."""
_PICTURES = "pictures (channels, height, width)"
_TOKENS = "texts: tokens (length,), 0 where a text has ended"
_SEQUENCES = f"{_TOKENS}; or numbers (time, features)"
_ANYTHING = "anything: it is flattened"
_TABLE = "rows of a table"
_PARTS = "samples of several parts: a picture, a text, columns (data.image, data.fuse)"
Shapes = dict[str, tuple[int, ...]]
"""Of each part of a sample, by its name."""


@dataclass(frozen=True)
class Family:
    """One architecture; every one gives float32 (batch, outputs)."""

    summary: str
    takes: str
    """Of one sample, in words; decides which inputs are refused."""
    file: str
    """``<framework>_<file>.py`` in this folder holds the functions."""
    args: dict[str, Arg]
    """What ``model.args`` may hold."""
    frameworks: tuple[str, ...] = FRAMEWORKS
    old_name_of: str = ""
    rule: Callable[[dict[str, Any], tuple[int, ...]], str] = lambda _args, _shape: ""
    """What no single argument can know: a complaint, or nothing."""


def _enough_pixels(args: dict[str, Any], shape: tuple[int, ...]) -> str:
    least = 2 ** len(args["channels"])
    if min(shape[1:]) >= least:
        return ""
    return (
        f"channels = {list(args['channels'])} halves a picture {len(args['channels'])} times: it takes "
        f"pictures of at least {least} pixels a side, not {shape[1]} x {shape[2]}"
    )


def _heads_divide(args: dict[str, Any], _: tuple[int, ...]) -> str:
    if args["width"] % args["heads"] == 0:
        return ""
    return f"width = {args['width']} cannot be divided among heads = {args['heads']}"


_DROPOUT = share(0.0, "share of numbers that are left out in a training step")
_CNN = {
    "channels": counts((32, 64), "of each convolution, which is followed by halving"),
    "hidden": count(128, "numbers in the dense layer before the last"),
    "dropout": _DROPOUT,
}
_TRANSFORMER = {
    "width": count(64, "numbers a position"),
    "heads": count(4, "of each attention; they divide the width"),
    "layers": count(2, "blocks of attention and two dense layers"),
    "hidden": count(128, "numbers in a block's middle"),
    "dropout": share(0.1, "share of numbers left out, in each block and after the embedding"),
}

FAMILIES: dict[str, Family] = {
    "mlp": Family(
        "dense layers with ReLU between them; for tables and small arrays",
        _ANYTHING,
        "dense",
        {"hidden": counts((64, 64), "numbers in each layer but the last"), "dropout": _DROPOUT},
    ),
    "cnn": Family(
        "convolutions, each followed by halving, and two dense layers; for small pictures",
        _PICTURES,
        "pictures",
        _CNN,
        rule=_enough_pixels,
    ),
    "resnet": Family(
        "a residual network for small pictures; widths = [64, 128, 256, 512], blocks = 2 is a ResNet-18",
        _PICTURES,
        "pictures",
        {
            "widths": counts((16, 32, 64), "channels of each stage; each but the first halves"),
            "blocks": count(2, "of two convolutions, in each stage"),
            "dropout": _DROPOUT,
        },
    ),
    "text-small": Family(
        "the mean of the words' vectors and two dense layers; where the order of words matters little",
        _TOKENS,
        "dense",
        {
            "width": count(64, "numbers a word"),
            "hidden": count(64, "numbers in the dense layer before the last"),
            "dropout": share(0.1, _DROPOUT.meaning),
        },
    ),
    "rnn": Family(
        "an RNN, LSTM or GRU and a dense layer on what it says at the end",
        _SEQUENCES,
        "sequences",
        {
            "kind": word("lstm", ("rnn", "lstm", "gru"), "of the cell"),
            "width": count(64, "numbers that are remembered; of texts also a token's numbers"),
            "layers": count(1, "one on top of the other"),
            "dropout": share(0.0, "share of numbers left out before each layer but the first, and at the end"),
        },
    ),
    "transformer-encoder": Family(
        "attention from everywhere to everywhere, then the mean over the positions",
        _SEQUENCES,
        "sequences",
        _TRANSFORMER,
        rule=_heads_divide,
    ),
    "transformer-decoder": Family(
        "attention to what came before only; judged by the last position",
        _SEQUENCES,
        "sequences",
        _TRANSFORMER,
        rule=_heads_divide,
    ),
    "two-tower": Family(
        "two groups of columns, a tower for each, and the product of what these say; for recommendations",
        _TABLE,
        "dense",
        {
            "left": names("columns of the first tower, e.g. those of a user"),
            "right": names("columns of the second one, e.g. those of an item; default: all others"),
            "hidden": counts((64,), "numbers in each layer of a tower but the last"),
            "width": count(32, "numbers that a tower gives"),
        },
    ),
    "fusion": Family(
        "an encoder for each part, and two dense layers on what these say together",
        _PARTS,
        "fusion",
        {
            "width": count(64, "numbers that each part's encoder gives; of texts also a word's numbers"),
            "channels": counts((32, 64), "of each convolution over the picture, which is followed by halving"),
            "hidden": count(128, "numbers in the dense layer on top of all parts"),
            "dropout": share(0.0, "share of numbers left out before the last layer in a training step"),
        },
        rule=_enough_pixels,
    ),
    "cnn-small": Family(
        "the old name of cnn", _PICTURES, "pictures", _CNN, ("pytorch",), "cnn", _enough_pixels
    ),
}  # fmt: skip


def full_names() -> dict[str, str]:
    """Every built-in model -> its backend: ``mlp`` is PyTorch's, ``keras/mlp`` Keras'."""
    return {
        name if framework == FRAMEWORKS[0] else f"{framework}/{name}": framework
        for name, family in FAMILIES.items()
        for framework in family.frameworks
    }


def names_for(framework: str) -> list[str]:
    """What ``model.build`` may be with ``model.framework``, old names left out."""
    return sorted(
        name
        for name, family in FAMILIES.items()
        if framework in family.frameworks and not family.old_name_of
    )


def split_name(full_name: str) -> tuple[str, str]:
    """``keras/mlp`` -> ``("keras", "mlp")``, ``mlp`` -> ``("pytorch", "mlp")``."""
    framework, slash, name = full_name.partition("/")
    return (framework, name) if slash else (FRAMEWORKS[0], full_name)


def function_of(full_name: str) -> Callable[..., object]:
    """The function that builds the model; imports its framework."""
    framework, name = split_name(full_name)
    module = import_module(f"{__name__}.{framework}_{FAMILIES[name].file}")
    function: Callable[..., object] = module.FAMILIES[FAMILIES[name].old_name_of or name]
    return function


def check(
    full_name: str,
    args: dict[str, Any],
    input_shape: tuple[int, ...] | Shapes,
    *,
    vocabulary: int = 0,
    columns: tuple[tuple[str, int], ...] = (),
) -> None:
    """Raises ModelError for an argument or an input that the family does not take, without a framework."""
    name = split_name(full_name)[1]
    family = FAMILIES[name]
    for key, value in args.items():
        if key not in family.args:
            hint = did_you_mean(key, family.args)
            raise ModelError(
                f"model.args has {key!r}, which {name} does not take{hint}",
                f"it takes: {', '.join(family.args)}",
            )
        if complaint := family.args[key].complaint(value):
            raise ModelError(
                f"model.args.{key} = {value!r}, but {name} needs {complaint}",
                f"{key}: {family.args[key].meaning}; default: {family.args[key].default!r}",
            )
    _check_input(name, family, input_shape, vocabulary, columns)
    if family.takes == _TABLE:
        _check_columns(name, args, [column for column, _ in columns])
    whole = {key: arg.default for key, arg in family.args.items()} | args
    picture = input_shape.get("image") if isinstance(input_shape, dict) else input_shape
    if picture and (complaint := family.rule(whole, picture)):
        raise ModelError(
            f"{name}: {complaint}",
            f"change model.args; it takes: {', '.join(family.args)}",
        )


def _check_input(
    name: str,
    family: Family,
    shape: tuple[int, ...] | Shapes,
    vocabulary: int,
    columns: tuple[tuple[str, int], ...],
) -> None:
    if isinstance(shape, dict):
        if family.takes != _PARTS:
            raise ModelError(
                f"{name} takes {family.takes}; a sample of this data has several parts: {', '.join(shape)}",
                "use fusion, or a function of your own, whose model is given a dict of them",
            )
        return
    fits = {
        _PICTURES: len(shape) == 3 and not vocabulary,
        _TOKENS: bool(vocabulary),
        _SEQUENCES: bool(vocabulary) or len(shape) == 2,
        _ANYTHING: not vocabulary,
        _TABLE: bool(columns),
        _PARTS: False,
    }
    if fits[family.takes]:
        return
    kind = "tokens" if vocabulary else "numbers"
    others = [
        other
        for other, its in FAMILIES.items()
        if not its.old_name_of and its.takes != family.takes and _suits(its, shape, vocabulary)
    ]
    raise ModelError(
        f"{name} takes {family.takes}; a sample of this data is {kind} of shape {shape}",
        f"use one of: {', '.join(others)}, or a function of your own",
    )


def _suits(family: Family, shape: tuple[int, ...], vocabulary: int) -> bool:
    if vocabulary:
        return family.takes in (_TOKENS, _SEQUENCES)
    return family.takes == _ANYTHING or (
        family.takes == (_PICTURES if len(shape) == 3 else _SEQUENCES) and len(shape) in (2, 3)
    )


def _check_columns(name: str, args: dict[str, Any], columns: list[str]) -> None:
    """Both towers have columns of the table, and none has the other's."""
    left, right = list(args.get("left", ())), list(args.get("right", ()))
    known = ", ".join(columns)
    if not left:
        raise ModelError(
            f"{name} needs model.args.left: {FAMILIES[name].args['left'].meaning}",
            f"the table has: {known}",
        )
    for side, chosen in (("left", left), ("right", right)):
        for column in chosen:
            if column not in columns:
                hint = did_you_mean(column, columns)
                raise ModelError(
                    f"model.args.{side} has {column!r}, which is no column that the model is given{hint}",
                    f"the table has: {known}",
                )
    both = sorted(set(left) & set(right))
    if both or len(set(left)) == len(columns):
        what = f"both towers have {', '.join(both)}" if both else "the first tower has all columns"
        raise ModelError(f"{name}: {what}", "give each tower columns of its own")


def tower_places(
    columns: tuple[tuple[str, int], ...], left: tuple[str, ...], right: tuple[str, ...]
) -> tuple[list[int], list[int]]:
    """Which of the features each tower is given. ``columns``: name and number of features of each."""
    places: tuple[list[int], list[int]] = [], []
    start = 0
    for name, width in columns:
        if name in left or not right or name in right:
            places[name not in left].extend(range(start, start + width))
        start += width
    return places
