"""Runs side by side: what went in differently, what came out, what it took; and their learning curves."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from modelyard.spec.errors import MissingExtraError, UsageError, from_os_error
from modelyard.spec.records import AnyEvent, Evaluated, Record, Run, StepDone
from modelyard.store.files import write_atomic
from modelyard.training.curves import last_word

_COLORS = ("#3b7dd8", "#e07b39", "#2f9e6e", "#a35bc9", "#c93c37", "#8a8f98", "#c9a227", "#3aa6b9")
_LONGEST = 28
_MOST_POINTS = 800


class Row(Record, frozen=True, kw_only=True):
    """One line of the comparison: a value for each run, in their order."""

    kind: str
    """``input``, ``metric``, ``result`` or ``versions``."""
    name: str
    values: tuple[str | float | None, ...]
    best: int | None = None
    """Which run is best, where that has a meaning and they differ."""


class Comparison(Record, frozen=True, kw_only=True):
    """Only inputs and versions that differ; all metrics."""

    runs: tuple[str, ...]
    rows: tuple[Row, ...]


def compare(runs: Sequence[Run], higher_is_better: Mapping[str, bool]) -> Comparison:
    """Two runs or more. ``higher_is_better`` knows metrics by their bare names (``accuracy``).

    Raises UsageError for fewer than two.
    """
    if len(runs) < 2:
        raise UsageError(
            "a comparison needs two runs or more", "`yard runs compare A B`; `yard runs` lists them"
        )
    if twice := [run.id for place, run in enumerate(runs) if run in runs[:place]]:
        raise UsageError(
            f"{twice[0]} is named twice", "write more of the ids; `yard runs` lists them"
        )
    rows = [
        *_differing("input", [run.inputs for run in runs]),
        *_differing("versions", [run.versions for run in runs]),
        *_results(runs),
        *_metrics(runs, higher_is_better),
    ]
    return Comparison(runs=tuple(run.id for run in runs), rows=tuple(rows))


def _differing(kind: str, sides: Sequence[Mapping[str, str]]) -> list[Row]:
    names = sorted({name for side in sides for name in side})
    rows = [Row(kind=kind, name=n, values=tuple(side.get(n) for side in sides)) for n in names]
    return [row for row in rows if len(set(row.values)) > 1]


def _results(runs: Sequence[Run]) -> list[Row]:
    found: list[tuple[str, tuple[str | float | None, ...]]] = [
        ("state", tuple(run.state for run in runs)),
        ("ended by", tuple(run.reason or run.error or None for run in runs)),
        ("steps", tuple(f"{run.step} of {run.steps}" for run in runs)),
        ("workers", tuple(run.world_size for run in runs)),
        ("restarts", tuple(run.restarts for run in runs)),
        ("seconds", tuple(round(run.spent.seconds or run.seconds, 1) for run in runs)),
        ("samples per second", tuple(round(run.samples_per_second) for run in runs)),
        ("cost", tuple(None if run.cost is None else round(run.cost, 4) for run in runs)),
        ("processor", tuple(run.machine.processor if run.machine else None for run in runs)),
    ]
    always = ("state", "steps", "seconds")
    return [
        Row(kind="result", name=name, values=values)
        for name, values in found
        if name in always or len(set(values)) > 1 or (name == "cost" and values[0] is not None)
    ]


def _metrics(runs: Sequence[Run], higher_is_better: Mapping[str, bool]) -> list[Row]:
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    rows = []
    for name in names:
        values = tuple(run.metrics.get(name) for run in runs)
        known = [(value, place) for place, value in enumerate(values) if value is not None]
        better = higher_is_better.get(name.rpartition("/")[2])
        best = None
        if better is not None and len({value for value, _ in known}) > 1:
            best = (max(known) if better else min(known))[1]
        rows.append(Row(kind="metric", name=name, values=values, best=best))
    return rows


def table(comparison: Comparison) -> list[dict[str, object]]:
    """Rows for people: long values are cut in the middle, the best of a metric has a star."""
    return [
        {
            "": f"{row.kind}: {row.name}" if row.kind in ("input", "versions") else row.name,
            **{
                run: _shown(value) + (" *" if row.best == place else "")
                for place, (run, value) in enumerate(zip(comparison.runs, row.values, strict=True))
            },
        }
        for row in comparison.rows
    ]


def _shown(value: str | float | None) -> str:
    text = "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[: half - 1]}…{text[-half:]}"


def plot(
    runs: Sequence[Run], events: Sequence[Sequence[AnyEvent]], metric: str, path: Path
) -> None:
    """Learning curves of the runs in one picture: ``.png``, ``.svg`` or ``.html``.

    Raises UsageError for another ending, MissingExtraError without Matplotlib, StoreError.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "html"):
        raise UsageError(f"{path.name!r}: a picture of what kind?", "name it .png, .svg or .html")
    picture = _picture([run.id for run in runs], events, metric, "svg" if kind == "svg" else "png")
    if kind == "html":
        picture = _page(runs, picture).encode()
    try:
        write_atomic(path, picture)
    except OSError as error:
        raise from_os_error(error) from error


def _picture(
    names: Sequence[str], events: Sequence[Sequence[AnyEvent]], metric: str, kind: str
) -> bytes:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("pictures need the package 'matplotlib'", "report") from error
    shown = ["loss", *([metric] if metric != "loss" else [])]
    figure = Figure(figsize=(5.2 * (len(shown) + 1), 3.8), layout="constrained")
    training, *panels = figure.subplots(1, len(shown) + 1)
    for place, (name, found) in enumerate(zip(names, events, strict=True)):
        color = _COLORS[place % len(_COLORS)]
        steps = last_word([e for e in found if isinstance(e, StepDone)])
        steps = steps[:: max(1, len(steps) // _MOST_POINTS)]
        training.plot(
            [e.epoch for e in steps], [e.loss for e in steps], color=color, label=name, linewidth=1
        )
        for panel, measured in zip(panels, shown, strict=True):
            points = [
                (event.epoch, event.metrics[measured])
                for event in last_word([e for e in found if isinstance(e, Evaluated)])
                if event.split == "validation" and measured in event.metrics
            ]
            if points:
                x, y = zip(*points, strict=True)
                panel.plot(x, y, color=color, label=name, marker="o", markersize=3)
    titles = ("training loss", *(f"validation {measured}" for measured in shown))
    for panel, title in zip((training, *panels), titles, strict=True):
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_xlabel("epoch", fontsize=9)
        panel.grid(alpha=0.25)
    training.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=110)
    return buffer.getvalue()


def _page(runs: Sequence[Run], picture: bytes) -> str:
    title = html.escape(" · ".join(run.id for run in runs))
    source = base64.b64encode(picture).decode()
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>{title}</title></head><body style='font-family:system-ui;max-width:80rem;margin:2rem auto'>"
        f"<h1 style='font-size:1.2rem'>{title}</h1>"
        f"<img style='max-width:100%' alt='Learning curves' src='data:image/png;base64,{source}'>"
        "</body></html>\n"
    )
