"""``yard tensorboard``: TensorBoard on the runs, written from their event logs."""

import argparse
import subprocess
import sys


def arguments(parser: argparse.ArgumentParser) -> None:
    from modelyard.cli.output import project_arguments

    parser.add_argument("--port", type=int, default=6006)
    parser.add_argument(
        "--write-only", action="store_true", help="write the files and say where; start nothing"
    )
    project_arguments(parser, overrides=False)


def run(parsed: argparse.Namespace) -> int:
    from importlib.util import find_spec
    from pathlib import Path

    from modelyard.cli.output import open_project, print_json
    from modelyard.spec.errors import MissingExtraError, NotFoundError
    from modelyard.training.tensorboard import convert
    from modelyard.way import list_runs

    _, store = open_project(parsed)
    runs = list_runs(store)
    if not runs:
        raise NotFoundError("there are no runs yet", "train first: `yard train`")
    folder = store.root / "tensorboard"
    for item in runs:
        convert(Path(item.folder), folder / item.id)
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
    ]
    print(f"http://127.0.0.1:{parsed.port}  (Ctrl-C ends it)", file=sys.stderr)
    return subprocess.call(command)
