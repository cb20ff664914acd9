"""``yard tensorboard``: TensorBoard on the runs, written from their event logs and kept up to date."""

import argparse
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelyard.training.tensorboard import Follower

_SECONDS_BETWEEN = 2.0


def arguments(parser: argparse.ArgumentParser) -> None:
    from modelyard.cli.output import project_arguments

    parser.add_argument("--port", type=int, default=6006)
    parser.add_argument(
        "--write-only", action="store_true", help="write the files and say where; start nothing"
    )
    project_arguments(parser, overrides=False)


def run(parsed: argparse.Namespace) -> int:
    from importlib.util import find_spec

    from modelyard.cli.output import open_project, print_json
    from modelyard.spec.errors import MissingExtraError, NotFoundError
    from modelyard.training.tensorboard import Follower
    from modelyard.way import list_runs

    _, store = open_project(parsed)
    if not list_runs(store):
        raise NotFoundError("there are no runs yet", "train first: `yard train`")
    folder = store.root / "tensorboard"
    follower = Follower(store, folder)
    follower.update()
    if parsed.write_only:
        print_json({"folder": str(folder)}) if parsed.json else print(folder)
        return 0
    if find_spec("tensorboard") is None:
        raise MissingExtraError("TensorBoard is not installed", "tensorboard")
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(parsed.port),
        "--reload_interval",
        str(int(_SECONDS_BETWEEN)),
    ]
    print(f"http://127.0.0.1:{parsed.port}  (Ctrl-C ends it)", file=sys.stderr)
    return _beside(command, follower)


def _beside(command: list[str], follower: "Follower") -> int:
    """Run TensorBoard, and keep the files up to date until it ends or this command is ended."""
    with subprocess.Popen(command) as process:
        try:
            while True:
                try:
                    return process.wait(_SECONDS_BETWEEN)
                except subprocess.TimeoutExpired:
                    follower.update()
        finally:
            process.terminate()
