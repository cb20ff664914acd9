"""The run's report: one HTML file that needs nothing beside it."""

import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from modelyard.spec.errors import from_os_error
from modelyard.spec.records import AnyEvent, Dataset, Noticed, Restarted, Run, WentBack, WorkerLost
from modelyard.store.files import write_atomic
from modelyard.training.budget import explain, money
from modelyard.training.curves import confusion_matrix, learning_curves
from modelyard.training.progress import describe, duration, size

Row = tuple[str, str]


def write_report(run: Run, dataset: Dataset, events: Sequence[AnyEvent], path: Path) -> None:
    """Write the report of ``run`` to ``path``. Raises MissingExtraError without Matplotlib, StoreError."""
    try:
        write_atomic(path, _page(run, dataset, events).encode())
    except OSError as error:
        raise from_os_error(error) from error


def _page(run: Run, dataset: Dataset, events: Sequence[AnyEvent]) -> str:
    metric = run.inputs.get("train.metric", "loss")
    body = [
        _heading(run),
        _tiles(run, metric),
        _section("Learning curves", _picture(learning_curves(events, metric))),
        _section(
            "Confusion matrix on the test split",
            _picture(confusion_matrix(run.confusion, dataset.task.classes)),
        ),
        _section("Metrics of the best checkpoint", _metrics_table(run)),
        _section("Data", _table(_data_rows(dataset)) + _findings(dataset)),
        _section("What happened", _happenings(events)),
        _section("Workers", _workers(run)),
        _section("Made on and with", _table(_made_with(run))),
        _section("What went in", _table(sorted(run.inputs.items()))),
    ]
    title = html.escape(f"{run.project}: run {run.id}")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><main>"
        + "\n".join(part for part in body if part)
        + "</main></body></html>\n"
    )


def _heading(run: Run) -> str:
    when = html.escape(run.created.replace("T", " ").replace("+00:00", " UTC"))
    error = f"<p class='error'>{html.escape(run.error)}</p>" if run.error else ""
    ended = explain(run)
    error += f"<p class='quiet'>It was ended {html.escape(ended)}.</p>" if ended else ""
    return (
        f"<h1>{html.escape(run.project)}</h1>"
        f"<p class='quiet'><span class='state {run.state}'>{run.state}</span> run <code>{html.escape(run.id)}</code>"
        f" · begun {when}</p>{error}"
    )


def _tiles(run: Run, metric: str) -> str:
    """The few numbers that one wants first."""
    test = [(n, v) for n, v in run.metrics.items() if n in (f"test/{metric}", "test/loss")]
    tiles = [(name.replace("/", " "), number(value)) for name, value in test]
    tiles += [
        ("steps", f"{run.step:,}"),
        ("samples / s", f"{run.samples_per_second:,.0f}"),
        ("time", duration(run.spent.seconds or run.seconds)),
        *([("cost", money(run.cost))] if run.cost is not None else []),
        ("workers", str(run.world_size)),
        ("restarts", str(run.restarts)),
    ]
    cells = "".join(
        f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>"
        for name, value in tiles
    )
    return f"<div class='tiles'>{cells}</div>"


def _metrics_table(run: Run) -> str:
    """One row a metric, one column a split."""
    splits = sorted({name.partition("/")[0] for name in run.metrics}, reverse=True)
    names = list(dict.fromkeys(name.partition("/")[2] for name in run.metrics))
    if not names:
        return ""
    head = "".join(f"<th class='number'>{html.escape(split)}</th>" for split in splits)
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th>"
        + "".join(
            f"<td class='number'>{number(run.metrics.get(f'{split}/{name}', math.nan))}</td>"
            for split in splits
        )
        + "</tr>"
        for name in names
    )
    best = (
        f"<p class='quiet'>step {run.best.step}, epoch {run.best.epoch:.2f}</p>" if run.best else ""
    )
    return f"<table><tr><th></th>{head}</tr>{rows}</table>{best}"


def _data_rows(dataset: Dataset) -> list[Row]:
    splits = ", ".join(f"{name} {count:,}" for name, count in dataset.splits.items())
    rows = [
        ("source", f"{dataset.source} {dataset.path}"),
        ("digest", dataset.id),
        ("samples", f"{dataset.samples:,} ({splits})"),
        ("task", f"{dataset.task.type} of {dataset.task.target}, {dataset.task.loss}"),
    ]
    if dataset.task.classes:
        shown = ", ".join(dataset.task.classes[:30])
        more = f", … ({len(dataset.task.classes)})" if len(dataset.task.classes) > 30 else ""
        rows.append(("classes", shown + more))
    return rows


def _findings(dataset: Dataset) -> str:
    if not dataset.quality:
        return "<p class='quiet'>The quality check found nothing.</p>"
    items = "".join(
        f"<li><span class='state {finding.severity}'>{finding.severity}</span> {html.escape(finding.message)}"
        + (
            f"<br><span class='quiet'>{html.escape(', '.join(finding.examples[:5]))}</span>"
            if finding.examples
            else ""
        )
        + "</li>"
        for finding in dataset.quality
    )
    return f"<ul>{items}</ul>"


def _happenings(events: Sequence[AnyEvent]) -> str:
    """Only what is out of the ordinary."""
    rare = [
        event for event in events if isinstance(event, WorkerLost | Restarted | WentBack | Noticed)
    ]
    if not rare:
        return ""
    began = events[0].time
    return _table((f"after {duration(event.time - began)}", describe(event)) for event in rare)


def _workers(run: Run) -> str:
    return _table(
        (
            f"worker {worker.rank}" + (f", attempt {worker.attempt + 1}" if worker.attempt else ""),
            f"process {worker.pid} on {worker.host}, {worker.device}",
        )
        for worker in sorted(run.workers, key=lambda worker: (worker.attempt, worker.rank))
    )


def _made_with(run: Run) -> Iterable[Row]:
    if run.machine is not None:
        yield "machine", f"{run.machine.host}, {run.machine.system}"
        yield "processor", f"{run.machine.processor}, {run.machine.cores} cores"
        yield "memory", size(run.machine.memory)
        for gpu in run.machine.gpus:
            yield "GPU", gpu
    if run.command:
        yield "command", run.command
    if run.versions:
        yield "versions", ", ".join(f"{name} {value}" for name, value in run.versions.items())
    yield from run.code.items()


def _table(rows: Iterable[Row]) -> str:
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>{cells}</table>" if cells else ""


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>" if content else ""


def _picture(svg: str) -> str:
    return f"<figure>{svg}</figure>" if svg else ""


def number(value: float) -> str:
    """Four digits after the point where they mean something."""
    if math.isnan(value):
        return "–"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"


_STYLE = """
:root { color-scheme: light dark; --text: #20242b; --quiet: #68707c; --line: #e3e6ea; --page: #fff; --tile: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --quiet: #9aa2ad; --line: #30363d; --page: #14171b; --tile: #1d2126; } }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { margin: 0; font-size: 1.9rem; } h2 { font-size: 1.05rem; margin: 2.4rem 0 .7rem; }
.quiet { color: var(--quiet); } code { font-size: .92em; }
.state { padding: .1rem .5rem; border-radius: 1rem; font-size: .8rem; background: var(--tile); color: var(--quiet); }
.complete { background: #1f883d; color: #fff; } .failed, .state.error { background: #c93c37; color: #fff; }
.interrupted, .warning { background: #b57614; color: #fff; } .running { background: #3b7dd8; color: #fff; }
p.error { border-left: 3px solid #c93c37; padding-left: .8rem; white-space: pre-wrap; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); gap: .7rem; margin-top: 1.4rem; }
.tiles div { background: var(--tile); border-radius: .6rem; padding: .8rem 1rem; }
.tiles b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; } .tiles span { color: var(--quiet); font-size: .85rem; }
figure { margin: 0; overflow-x: auto; } figure svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .3rem 1.6rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 500; color: var(--quiet); white-space: nowrap; } .number { text-align: right; font-variant-numeric: tabular-nums; }
ul { padding-left: 1.1rem; } li { margin: .35rem 0; }
"""
