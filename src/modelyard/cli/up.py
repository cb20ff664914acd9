"""``yard up``: the whole way, doing only what is not current."""

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelyard.way import Stage, Way


def arguments(parser: argparse.ArgumentParser) -> None:
    from modelyard.cli.output import project_arguments

    project_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done and why, and do nothing"
    )


def run(parsed: argparse.Namespace) -> int:
    from modelyard import flow
    from modelyard.cli.output import open_project, print_json
    from modelyard.training.progress import progress_for

    project, _ = open_project(parsed)
    progress = progress_for(sys.stderr)
    try:
        way = flow.up(
            project,
            say=lambda text: print(f"  {text}", file=sys.stderr),
            observers=[progress],
            dry_run=parsed.dry_run,
            on_stage=_announce,
        )
    finally:
        progress.close()
    if parsed.json:
        print_json({"changed": not way.current and not parsed.dry_run, **vars(way)})
    elif parsed.dry_run or way.current:
        _plan(way)
    else:
        _result(way)
    return 0


def _announce(stage: "Stage") -> None:
    mark = "✓" if stage.current else "▸"
    print(f"{mark} {stage.name:<9} {stage.reason}", file=sys.stderr, flush=True)


def _plan(way: "Way") -> None:
    for stage in way.stages:
        print(
            f"{'up to date' if stage.current else 'would run ':<10}  {stage.name:<9} {stage.reason}"
        )
    if way.current:
        print("everything is up to date; nothing was run")


def _result(way: "Way") -> None:
    from modelyard.cli.output import metrics_line, print_pairs

    run, bundle, version, deployment = way.run, way.bundle, way.version, way.deployment
    if run is None or bundle is None or version is None or deployment is None:
        return
    print_pairs(
        [
            (
                "run",
                f"{run.id}  ({run.world_size} worker{'s' * (run.world_size > 1)}, {run.seconds:.1f} s)",
            ),
            ("test", metrics_line(run.metrics)),
            (
                "parity",
                f"largest error {bundle.parity.largest_error:.2g} against {bundle.parity.framework}",
            ),
            ("model", f"{version.reference}  {version.digest[:19]}"),
            (
                "service",
                f"{deployment.url}  ({len(deployment.replicas)} replicas; open it in a browser)",
            ),
        ]
    )
