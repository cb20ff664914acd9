"""``yard train``: prepare the data and train."""

import argparse
import sys


def arguments(parser: argparse.ArgumentParser) -> None:
    from modelyard.cli.output import project_arguments

    parser.add_argument(
        "--progress",
        choices=("auto", "plain", "json"),
        default="auto",
        help="on standard error: a live line on a terminal, else plain lines; or each event as JSON",
    )
    project_arguments(parser)


def run(parsed: argparse.Namespace) -> int:
    from modelyard import flow
    from modelyard.cli.output import metrics_line, open_project, print_json, print_pairs
    from modelyard.training.budget import explain, money
    from modelyard.training.progress import progress_for

    project, _ = open_project(parsed)
    progress = progress_for(
        sys.stderr, json_lines=parsed.progress == "json", plain=parsed.progress == "plain"
    )
    try:
        result = flow.train(
            project, observers=[progress], say=lambda text: print(f"  {text}", file=sys.stderr)
        )
    finally:
        progress.close()
    if parsed.json:
        print_json(result)
        return 0
    print_pairs(
        [
            (
                "run",
                f"{result.id}  ({result.world_size} worker{'s' * (result.world_size > 1)}, {result.seconds:.1f} s)",
            ),
            *([("ended", ended)] if (ended := explain(result)) else []),
            *([("cost", money(result.cost))] if result.cost is not None else []),
            ("test", metrics_line(result.metrics)),
            ("next", f"yard report {result.id}   or   yard up"),
        ]
    )
    return 0
