"""``yard models``: versions in the registry; ``yard models digits:2 --alias production`` moves an alias."""

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    from modelyard.cli.output import project_arguments

    parser.add_argument(
        "reference", nargs="?", help="digits, digits:3, digits:production or digits@sha256:…"
    )
    parser.add_argument("--alias", help="let this alias point to the version")
    project_arguments(parser, overrides=False)


def run(parsed: argparse.Namespace) -> int:
    from modelyard.bundle.format import CARD
    from modelyard.cli.output import metrics_line, open_project, print_json, print_table
    from modelyard.store import registry

    _, store = open_project(parsed)
    if parsed.reference:
        version = registry.resolve(store, parsed.reference)
        if parsed.alias:
            version = registry.set_alias(store, version.name, parsed.alias, version.version)
        folder = registry.unpack(store, version.digest)
        print_json({**_plain(version), "folder": str(folder)}) if parsed.json else print(
            (folder / CARD).read_text()
        )
        return 0
    versions = registry.list_versions(store)
    rows = [
        {"model": item.reference, "aliases": ", ".join(item.aliases), "created": item.created[:19], "run": item.run,
         "digest": item.digest[:19], "test": metrics_line(item.metrics)}
        for item in versions
    ]  # fmt: skip
    print_json(versions) if parsed.json else print_table(rows, empty="no models yet: `yard up`")
    return 0


def _plain(record: object) -> dict[str, object]:
    import msgspec

    plain: dict[str, object] = msgspec.to_builtins(record)
    return plain
