"""The report's pictures: learning curves and the confusion matrix as SVG, drawn by Matplotlib."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.spec.errors import MissingExtraError, UsageError, from_os_error
from modelyard.spec.records import AnyEvent, Evaluated, StepDone
from modelyard.store.files import write_atomic
from modelyard.training.rate_finder import RateCurve

_BLUE, _ORANGE, _GREY = "#3b7dd8", "#e07b39", "#8a8f98"
_MOST_POINTS = 800
_MOST_WORDS = 40
"""Classes whose names and counts still fit on the picture."""


def learning_curves(events: Sequence[AnyEvent], metric: str) -> str:
    """Loss of both splits, the chosen metric, the learning rate: one SVG. Empty where there were no steps."""
    steps = last_word([event for event in events if isinstance(event, StepDone)])
    evaluations = last_word([event for event in events if isinstance(event, Evaluated)])
    if not steps:
        return ""
    figure = _figure(9.6, 2.9)
    panels = figure.subplots(1, 3)
    thinned = steps[:: max(1, len(steps) // _MOST_POINTS)]
    epochs = [event.epoch for event in thinned]
    panels[0].plot(epochs, [e.loss for e in thinned], color=_BLUE, linewidth=1.2, label="training")
    for panel, name in ((panels[0], "loss"), (panels[1], metric)):
        found = [(e.epoch, e.metrics[name]) for e in evaluations if name in e.metrics]
        if found and not (panel is panels[1] and metric == "loss"):
            x, y = zip(*found, strict=True)
            panel.plot(
                x, y, color=_ORANGE, linewidth=1.5, marker="o", markersize=3, label="validation"
            )
    panels[0].legend(frameon=False, fontsize=8, labelcolor=_GREY)
    _second_panel(panels[1], thinned, epochs, metric)
    panels[2].plot(epochs, [e.learning_rate for e in thinned], color=_BLUE, linewidth=1.2)
    titles = ("loss", metric if metric != "loss" else "samples / s", "learning rate")
    for panel, title in zip(panels, titles, strict=True):
        _plain(panel, title)
    return _svg(figure)


def confusion_matrix(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Rows are true classes, columns predicted; shaded by the share of the row. Empty without classes."""
    if not counts:
        return ""
    matrix = np.array(counts, dtype=float)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    few = len(classes) <= _MOST_WORDS
    side = min(9.6, 1.8 + 0.42 * len(classes)) if few else 7.0
    figure = _figure(side, side * 0.92)
    panel = figure.subplots()
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    _plain(panel, "")
    panel.grid(visible=False)
    panel.set_xlabel("predicted", color=_GREY, fontsize=9)
    panel.set_ylabel("true", color=_GREY, fontsize=9)
    ticks = range(len(classes)) if few else []
    names = [name if len(name) <= 16 else f"{name[:15]}…" for name in classes] if few else []
    turned = 45 if any(len(name) > 3 for name in names) else 0
    panel.set_xticks(ticks, names, rotation=turned, ha="right" if turned else "center")
    panel.set_yticks(ticks, names)
    if few:
        for row, column in np.ndindex(*matrix.shape):
            if matrix[row, column]:
                color = "white" if shares[row, column] > 0.5 else "#20242b"
                text = f"{int(matrix[row, column])}"
                panel.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    return _svg(figure)


def check_drawing(path: Path) -> None:
    """Raises UsageError where ``path`` is no picture that ``draw_rates`` makes, MissingExtraError without Matplotlib."""
    if path.suffix.lower() not in (".svg", ".html"):
        raise UsageError(f"{path.name!r}: a picture of what kind?", "name it .svg or .html")
    _figure(1, 1)


def draw_rates(curve: RateCurve, path: Path) -> None:
    """The curve of a range test, with the suggested rate, as ``.svg`` or ``.html``. Raises as ``check_drawing``, StoreError."""
    check_drawing(path)
    figure = _figure(7.2, 3.6)
    panel = figure.subplots()
    panel.plot(curve.rates, curve.losses, color=_GREY, linewidth=0.8, alpha=0.5, label="each step")
    panel.plot(curve.rates, curve.smooth, color=_BLUE, linewidth=1.6, label="smoothed")
    panel.axvline(curve.suggestion, color=_ORANGE, linewidth=1.2, label=f"{curve.suggestion:g}")
    panel.set_xscale("log")
    rise = curve.smooth[0] - min(curve.smooth)
    panel.set_ylim(min(curve.smooth) - 0.1 * rise, curve.smooth[0] + 0.5 * rise)
    _plain(panel, "training loss over the learning rate")
    panel.legend(frameon=False, fontsize=8, labelcolor=_GREY)
    picture = _svg(figure)
    if path.suffix.lower() == ".html":
        picture = (
            "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Learning rates</title></head>"
            f"<body style='font-family:system-ui;max-width:60rem;margin:2rem auto'>{picture}"
            f"<p>Steepest {curve.steepest:g}, a tenth of the lowest {curve.tenth:g}: suggested {curve.suggestion:g}.</p></body></html>\n"
        )
    try:
        write_atomic(path, picture.encode())
    except OSError as error:
        raise from_os_error(error) from error


def last_word(events: list[Any]) -> list[Any]:
    """What was trained again after a restart counts as it was the last time."""
    return [found for _, found in sorted({event.step: event for event in events}.items())]


def _second_panel(panel: Any, steps: Sequence[StepDone], epochs: list[float], metric: str) -> None:
    if metric == "loss":  # it is in the first panel already
        rates = [event.samples_per_second for event in steps]
        panel.plot(epochs, rates, color=_BLUE, linewidth=1.2)
        panel.set_ylim(bottom=0)


def _figure(width: float, height: float) -> Any:
    """A figure of Matplotlib's object interface: no display, no global state."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "the report's pictures need the package 'matplotlib'", "report"
        ) from error
    return Figure(figsize=(width, height), layout="constrained", facecolor="none")


def _plain(panel: Any, title: str) -> None:
    """Colours in the middle between black and white, so that one picture fits light and dark pages."""
    panel.set_facecolor("none")
    panel.set_title(title, fontsize=9, color=_GREY, loc="left")
    panel.tick_params(labelsize=8, colors=_GREY, length=0)
    panel.grid(visible=True, color=_GREY, alpha=0.18, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.margins(x=0.02)
    for name, spine in panel.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(_GREY)


def _svg(figure: Any) -> str:
    """The picture as an ``<svg>`` element; fixed ids, so that the same run gives the same file."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "modelyard", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
