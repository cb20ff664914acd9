"""``yard plugins``: the tables of parts, and the built-in models, and whether what they need is installed."""

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(parsed: argparse.Namespace) -> int:
    from importlib import import_module
    from importlib.util import find_spec

    from modelyard.backends.families import FAMILIES
    from modelyard.cli.output import print_json, print_table
    from modelyard.spec.plugins import table

    folders = {"sources": "data.sources", "tasks": "tasks", "backends": "backends", "engines": "engines",
               "runtimes": "serving.runtime", "protocols": "serving.protocols", "targets": "deployment.targets"}  # fmt: skip
    needs = {"pytorch": "torch", "keras": "keras", "jax": "flax", "serving": "onnxruntime"}
    rows = []
    for seam, folder in folders.items():
        built_in = import_module(f"modelyard.{folder}").BUILT_IN
        for name, plugin in sorted(table(seam, built_in).items()):
            missing = plugin.extra in needs and find_spec(needs[plugin.extra]) is None
            ready = f"pip install 'modelyard[{plugin.extra}]'" if missing else "yes"
            rows.append(
                {"seam": seam, "name": name, "what it is": plugin.summary, "installed": ready}
            )
    for name, family in FAMILIES.items():
        if not family.old_name_of:
            ready = "in " + ", ".join(name for name in family.frameworks if find_spec(needs[name]))
            rows.append(
                {"seam": "models", "name": name, "what it is": family.summary, "installed": ready}
            )
    print_json(rows) if parsed.json else print_table(rows, empty="none")
    return 0
