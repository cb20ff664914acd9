"""``yard status``: how far the project is on its way, and what is running."""

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    from modelyard.cli.output import project_arguments

    project_arguments(parser)


def run(parsed: argparse.Namespace) -> int:
    from modelyard.cli.output import open_project, print_json, print_table
    from modelyard.way import look

    project, store = open_project(parsed)
    way = look(project, store)
    if parsed.json:
        print_json(way)
        return 0
    for stage in way.stages:
        print(f"{'✓' if stage.current else '·'} {stage.name:<9} {stage.reason}")
    if way.deployment:
        print(
            f"\n{way.deployment.name} at {way.deployment.url}: {way.deployment.state} {way.deployment.error}".rstrip()
        )
        rows = [
            {
                "replica": item.index,
                "state": item.state,
                "version": item.version,
                "pid": item.pid,
                "restarts": item.restarts,
                "since": item.since,
            }
            for item in way.deployment.replicas
        ]
        print_table(rows, empty="no replicas")
    return 0
