"""``yard check``: preflight."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelyard.preflight import Check

MARKS = {"ok": "✓", "warning": "!", "failed": "✗"}


def arguments(parser: argparse.ArgumentParser) -> None:
    from modelyard.cli.output import project_arguments

    project_arguments(parser)


def run(parsed: argparse.Namespace) -> int:
    from modelyard.cli.output import open_project, print_json
    from modelyard.preflight import check

    project, _ = open_project(parsed)
    checks = check(project, on_check=lambda item: None if parsed.json else _show(item))
    failed = [item for item in checks if item.state == "failed"]
    if parsed.json:
        print_json(checks)
    else:
        print(f"{len(failed)} checks failed" if failed else "ready: `yard up`")
    return 1 if failed else 0


def _show(item: "Check") -> None:
    print(f"{MARKS[item.state]} {item.name:<8} {item.message}", flush=True)
    if item.mend:
        print(f"    mend: {item.mend}")
