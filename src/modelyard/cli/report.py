"""``yard report``: one HTML file with learning curves and confusion matrix."""

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    from modelyard.cli.output import project_arguments

    parser.add_argument("run", nargs="?", help="a run's id (default: the newest)")
    parser.add_argument(
        "--output", type=Path, help="where to write it (default: report.html in the run's folder)"
    )
    project_arguments(parser, overrides=False)


def run(parsed: argparse.Namespace) -> int:
    from modelyard.cli.output import open_project, print_json
    from modelyard.flow import write_run_report
    from modelyard.way import find_run

    _, store = open_project(parsed)
    path = write_run_report(store, find_run(store, parsed.run or ""), parsed.output)
    print_json({"report": str(path)}) if parsed.json else print(path)
    return 0
