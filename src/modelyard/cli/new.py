"""``yard new``: make a project from a template."""

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name of the project and of its new folder")
    parser.add_argument(
        "--template",
        default="image-classification",
        help="default: image-classification; `yard new x --template list` lists them",
    )
    parser.add_argument(
        "--framework",
        default="pytorch",
        help="what the model is written in: pytorch (default), keras, …; the list shows which there are",
    )
    parser.add_argument("--folder", type=Path, help="where to make it (default: ./NAME)")


def run(parsed: argparse.Namespace) -> int:
    from modelyard.cli.output import print_json, print_table
    from modelyard.templates import BUILT_IN, create, frameworks

    if parsed.template == "list":
        rows = [
            {"template": name, "what it is": item.summary, "models": ", ".join(frameworks(name))}
            for name, item in BUILT_IN.items()
        ]
        print_json(rows) if parsed.json else print_table(rows, empty="no templates")
        return 0
    folder = parsed.folder or Path(parsed.name)
    files = create(parsed.template, folder, Path(parsed.name).name, parsed.framework)
    if parsed.json:
        print_json({"folder": str(folder), "files": len(files)})
    else:
        print(f"{folder}: {len(files)} files\nnext:  cd {folder} && yard check && yard up")
    return 0
