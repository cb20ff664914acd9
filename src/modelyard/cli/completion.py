"""``yard completion``: shell completion, e.g. ``yard completion bash > ~/.local/share/bash-completion/completions/yard``."""

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"])


def run(parsed: argparse.Namespace) -> int:
    import shtab

    from modelyard.cli.__main__ import build_parser

    print(shtab.complete(build_parser("*"), shell=parsed.shell))
    return 0
