"""What can be asked for under ``[task]``, and which of it fits together."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat

from modelyard.spec.errors import nearest
from modelyard.spec.losses import FOCAL, LOSSES, is_own, metric_name
from modelyard.spec.other_names import other_name
from modelyard.spec.section import Fraction, Section

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TaskSection(Section):
    type: str = Field("classification", description='"classification" or "regression".')
    loss: str = Field(
        "auto",
        description='Classification: "cross-entropy", "focal", or for two classes on one output '
        '"binary-cross-entropy", "binary-focal". Regression: "mean-squared-error", '
        '"mean-absolute-error", "huber". auto: the first of each. Or your own: "module:function".',
    )
    label_smoothing: Fraction = Field(
        0.0,
        description="Classification: share of each label that is spread evenly over all classes, e.g. 0.1.",
    )
    focal_gamma: float = Field(
        2.0,
        ge=0,
        le=10,
        description="focal: how much less a sample counts the surer the model is of it; 0: cross-entropy.",
    )
    huber_delta: PositiveFloat = Field(
        1.0,
        allow_inf_nan=False,
        description="huber: errors up to this count squared, larger ones linearly; in the target's unit.",
    )
    class_weights: Literal["", "balanced"] | dict[str, Weight] = Field(
        "",
        description="Classification: factor of the losses of each class, { cat = 2.0 } (1 for those not named), "
        'or "balanced": the rarer in the training split, the heavier.',
    )
    metrics: list[str] = Field(
        [],
        description='Your own metrics, ["module:function"]: of outputs and targets as NumPy arrays, a number.',
    )
    lower_is_better: list[str] = Field(
        [], description="Names of those of your metrics that are better the lower they are."
    )


Fault = tuple[str, str, str, str]
"""Field of ``[task]``, what is wrong with it, what was expected, the nearest right word."""


def faults(task: Mapping[str, Any]) -> Iterator[Fault]:
    """What does not fit together, in the content of ``[task]`` as it was written."""
    kind, loss = task.get("type", "classification"), task.get("loss", "auto")
    if isinstance(loss, str) and kind in LOSSES:
        yield from _loss(kind, loss)
        yield from _options(task, kind, loss if loss != "auto" else LOSSES[kind][0])
    metrics = task.get("metrics", [])
    if isinstance(metrics, list) and all(isinstance(item, str) for item in metrics):
        yield from _metrics(metrics, task.get("lower_is_better", []))


def _loss(kind: str, loss: str) -> Iterator[Fault]:
    words = ("auto", *LOSSES[kind])
    if loss in words or is_own(loss):
        return
    elsewhere = next((other for other in LOSSES if loss in LOSSES[other]), "")
    problem = (
        f"{loss!r} is a loss of a {elsewhere}, not of a {kind}"
        if elsewhere
        else f"{loss!r} is not a loss"
    )
    close = other_name(loss, words) or nearest(loss, words)
    yield "loss", problem, f"{', '.join(words)}, or 'module:function'", close


def _options(task: Mapping[str, Any], kind: str, loss: str) -> Iterator[Fault]:
    """Options of another loss than the one that is asked for."""
    given = f"task.loss is {loss!r}"
    known = kind == "classification" and not is_own(loss)
    for name in ("label_smoothing", "class_weights"):
        if task.get(name) and not known:
            yield name, f"has no effect: {given}", "a loss of a classification, or nothing here", ""
    for name, default, losses in (
        ("focal_gamma", 2.0, sorted(FOCAL)),
        ("huber_delta", 1.0, ["huber"]),
    ):
        if task.get(name, default) != default and loss not in losses:
            yield name, f"has no effect: {given}", f"task.loss = {' or '.join(losses)}", ""


def _metrics(metrics: list[str], lower: Any) -> Iterator[Fault]:
    names = [metric_name(metric) for metric in metrics]
    for metric, name in zip(metrics, names, strict=True):
        if not all(metric.partition(":")):
            yield "metrics", f"{metric!r} is not module:function", 'e.g. "metrics:top_3"', ""
        elif names.count(name) > 1:
            yield "metrics", f"two are called {name!r}", "a name of its own for each function", ""
    for name in lower if isinstance(lower, list) else []:
        if name not in names:
            expected = f"one of your metrics: {', '.join(names) or 'there are none'}"
            yield (
                "lower_is_better",
                f"{name!r} is not in task.metrics",
                expected,
                nearest(str(name), names),
            )
