"""``yard logs``: what the service or a training printed."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelyard.spec.project import Project
    from modelyard.store import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    from modelyard.cli.output import project_arguments

    parser.add_argument("run", nargs="?", help="a run's id (default: the service)")
    parser.add_argument(
        "--lines", type=int, default=100, help="how many lines from the end (default 100)"
    )
    parser.add_argument(
        "--follow", action="store_true", help="go on as new lines come; Ctrl-C ends it"
    )
    project_arguments(parser, overrides=False)


def run(parsed: argparse.Namespace) -> int:
    from modelyard.cli.output import open_project, print_json

    project, store = open_project(parsed)
    text = _text(parsed, project, store)
    if parsed.json:
        print_json(text.splitlines())
        return 0
    sys.stdout.write(text)
    while parsed.follow:
        time.sleep(0.5)
        later = _text(parsed, project, store)
        if later != text:
            sys.stdout.write(_new_part(text, later))
            sys.stdout.flush()
            text = later
    return 0


def _text(parsed: argparse.Namespace, project: "Project", store: "Store") -> str:
    from modelyard.spec.errors import NotFoundError
    from modelyard.way import find_run, open_target

    if parsed.run:
        logs = sorted((Path(find_run(store, parsed.run).folder) / "logs").glob("*.log"))
        parts = [
            f"[{log.stem}] {line}"
            for log in logs
            for line in log.read_text(errors="replace").splitlines()[-parsed.lines :]
        ]
        return "\n".join(parts) + "\n" if parts else ""
    folder = store.deployment_folder(project.name)
    if not folder.exists():
        raise NotFoundError(f"{project.name} has never been deployed", "bring it up with `yard up`")
    return open_target(project.deploy.target).logs(folder, lines=parsed.lines)


def _new_part(before: str, after: str) -> str:
    """What ``after`` has beyond ``before``; a rotated log is shown again from its beginning."""
    if after.startswith(before):
        return after[len(before) :]
    seen = set(before.splitlines())
    return "".join(f"{line}\n" for line in after.splitlines() if line not in seen)
