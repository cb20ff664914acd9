"""``yard runs``: list trainings, or show one."""

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    from modelyard.cli.output import project_arguments

    parser.add_argument("run", nargs="?", help="show this run (its id, or the beginning of it)")
    project_arguments(parser, overrides=False)


def run(parsed: argparse.Namespace) -> int:
    from modelyard.cli.output import (
        metrics_line,
        open_project,
        print_json,
        print_pairs,
        print_table,
    )
    from modelyard.way import find_run, list_runs

    _, store = open_project(parsed)
    if parsed.run:
        found = find_run(store, parsed.run)
        if parsed.json:
            print_json(found)
        else:
            import msgspec

            print_pairs(
                (name, value)
                for name, value in msgspec.to_builtins(found).items()
                if name != "confusion"
            )
        return 0
    runs = list_runs(store)
    rows = [
        {"run": item.id, "state": item.state, "created": item.created[:19], "step": f"{item.step}/{item.steps}",
         "workers": item.world_size, "restarts": item.restarts, "test": metrics_line(item.metrics)}
        for item in runs
    ]  # fmt: skip
    print_json(runs) if parsed.json else print_table(rows, empty="no runs yet: `yard train`")
    return 0
