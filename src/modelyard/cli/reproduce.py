"""``yard reproduce``: train a run again and say whether the same comes out."""

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelyard.training.reproduce import Reproduction


def arguments(parser: argparse.ArgumentParser) -> None:
    from modelyard.cli.output import project_arguments

    parser.add_argument("run", help="the run's id, or the beginning of it")
    parser.add_argument(
        "--kept-code",
        action="store_true",
        help="use the copy of the model's code that the run kept, not the project's",
    )
    project_arguments(parser, overrides=False)


def run(parsed: argparse.Namespace) -> int:
    """Exit code 0 where it is the same, 1 where it differs."""
    from modelyard.cli.output import open_project, print_json, print_pairs
    from modelyard.training.progress import progress_for
    from modelyard.training.reproduce import reproduce
    from modelyard.way import find_run

    project, store = open_project(parsed)
    progress = progress_for(sys.stderr)
    try:
        found = reproduce(
            find_run(store, parsed.run),
            store,
            project.root,
            kept_code=parsed.kept_code,
            observers=[progress],
        )
    finally:
        progress.close()
    print_json(found) if parsed.json else print_pairs(_words(found))
    return 0 if found.same else 1


def _words(found: "Reproduction") -> list[tuple[str, object]]:
    if not found.different:
        weights = f"{found.tensors} tensors, bit-equal"
    else:
        weights = (
            f"{len(found.different)} of {found.tensors} tensors differ, "
            f"by {found.largest_difference:.3g} at most ({found.largest_in})"
        )
    rows: list[tuple[str, object]] = [
        ("run", f"{found.run}: {'the same' if found.same else 'not the same'}"),
        ("weights", weights),
        ("metrics", _metrics(found)),
    ]
    if found.steps[0] != found.steps[1]:
        rows.append(("best step", f"{found.steps[0]} then, {found.steps[1]} now"))
    return [*rows, *(("note", note) for note in found.notes)]


def _metrics(found: "Reproduction") -> str:
    apart = [
        f"{name} {then:.6g} then, {now:.6g} now"
        for name, (then, now) in found.metrics.items()
        if then != now
    ]
    return "; ".join(apart) if apart else f"{len(found.metrics)}, all equal"
