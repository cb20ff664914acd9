"""``yard schema``: the JSON schema of yard.toml, for editors."""

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(_parsed: argparse.Namespace) -> int:
    from modelyard.cli.output import print_json
    from modelyard.spec.project import ProjectFile

    print_json(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **ProjectFile.model_json_schema(),
        }
    )
    return 0
