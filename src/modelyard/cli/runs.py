"""``yard runs``: list trainings, show one, or compare some."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelyard.spec.records import Run
    from modelyard.store import Store

COMPARE = "compare"


def arguments(parser: argparse.ArgumentParser) -> None:
    from pathlib import Path

    from modelyard.cli.output import project_arguments

    parser.add_argument(
        "runs",
        nargs="*",
        metavar="run",
        help="show this run (its id, or the beginning of it); `compare A B …`: some side by side",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="with compare: also draw their learning curves (.png, .svg or .html)",
    )
    project_arguments(parser, overrides=False)


def run(parsed: argparse.Namespace) -> int:
    from modelyard.cli.output import open_project
    from modelyard.spec.errors import UsageError

    _, store = open_project(parsed)
    words = list(parsed.runs)
    if words[:1] == [COMPARE]:
        return _compare(parsed, store, words[1:])
    if parsed.plot:
        raise UsageError("--plot draws a comparison", "`yard runs compare A B --plot FILE`")
    if len(words) > 1:
        raise UsageError(
            f"one run is shown at a time, not {len(words)}",
            f"`yard runs compare {' '.join(words)}` sets them side by side",
        )
    return _show(parsed, store, words[0]) if words else _list(parsed, store)


def _show(parsed: argparse.Namespace, store: "Store", identifier: str) -> int:
    import msgspec

    from modelyard.cli.output import print_json, print_pairs
    from modelyard.way import find_run

    found = find_run(store, identifier)
    if parsed.json:
        print_json(found)
    else:
        shown = msgspec.to_builtins(found).items()
        print_pairs((name, value) for name, value in shown if name != "confusion")
    return 0


def _list(parsed: argparse.Namespace, store: "Store") -> int:
    from modelyard.cli.output import metrics_line, print_json, print_table
    from modelyard.way import list_runs

    runs = list_runs(store)
    rows = [
        {"run": item.id, "state": item.state, "created": item.created[:19], "step": f"{item.step}/{item.steps}",
         "workers": item.world_size, "restarts": item.restarts, "test": metrics_line(item.metrics)}
        for item in runs
    ]  # fmt: skip
    print_json(runs) if parsed.json else print_table(rows, empty="no runs yet: `yard train`")
    return 0


def _compare(parsed: argparse.Namespace, store: "Store", words: list[str]) -> int:
    import sys
    from pathlib import Path

    from modelyard.cli.output import print_json, print_table
    from modelyard.store.events import read_events
    from modelyard.training.compare import compare, plot, table
    from modelyard.way import find_run

    runs = [find_run(store, word) for word in words]
    found = compare(runs, _directions(store, runs))
    if parsed.plot:
        events = [read_events(Path(item.folder) / "events.jsonl") for item in runs]
        plot(runs, events, runs[0].inputs.get("train.metric", "loss"), parsed.plot)
    print_json(found) if parsed.json else print_table(table(found), empty="they do not differ")
    if parsed.plot:
        print(f"curves: {parsed.plot}", file=sys.stderr)
    return 0


def _directions(store: "Store", runs: "list[Run]") -> dict[str, bool]:
    """Of each metric, whether more is better, as the task of the first run's data knows."""
    import json

    from msgspec.structs import replace

    from modelyard.data.dataset import RECORD
    from modelyard.spec.errors import UsageError
    from modelyard.spec.records import Dataset
    from modelyard.tasks import open_task

    first = runs[0] if runs else None
    dataset = first and store.read_or_none(store.dataset_folder(first.dataset) / RECORD, Dataset)
    if not dataset:
        return {} if _other_losses(runs) else {"loss": False}
    own: dict[str, tuple[str, ...]] = {}
    for key in ("metrics", "lower_is_better"):
        texts = [item.inputs.get(f"task.{key}", "[]") for item in runs]
        own[key] = tuple({name: None for text in texts for name in json.loads(text)})
    task, known = open_task(replace(dataset.task, **own)), {}
    for name in {name.rpartition("/")[2] for item in runs for name in item.metrics}:
        if name == "loss" and _other_losses(runs):
            continue
        try:
            known[name] = task.higher_is_better(name)
        except UsageError:  # one of another task
            continue
    return known


def _other_losses(runs: "list[Run]") -> bool:
    """Whether the runs minimised different things, so that none of their losses is the best."""
    asked = [
        {key: value for key, value in item.inputs.items() if key.startswith("task.")}
        for item in runs
    ]
    for inputs in asked:
        for key in ("task.metrics", "task.lower_is_better"):
            inputs.pop(key, None)
    return any(inputs != asked[0] for inputs in asked)
