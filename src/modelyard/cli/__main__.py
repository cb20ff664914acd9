"""``yard``: parse the words, hand over to one command's file, turn errors into one clear message."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from modelyard.cli import COMMANDS

if TYPE_CHECKING:
    from modelyard.spec.errors import YardError

EPILOG = """\
a first project:
  yard new digits --template image-classification && cd digits
  yard check
  yard up
  yard predict data/7/0007.png

Every field of yard.toml can be set for one command: `yard up train.epochs=3`, or by a variable:
YARD_TRAIN_EPOCHS=3. Every command takes --json. Exit codes: 0 done, 1 failed, 2 wrong input,
130 interrupted (run the same command again: it goes on where it stopped).
"""


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser; with ``only``, just that command's arguments are filled in (the rest stay unread)."""
    parser = argparse.ArgumentParser(
        prog="yard",
        description="From a dataset and a model to a served and monitored system.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="command")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if only in (name, "*"):
            _module(name).arguments(command)
            command.add_argument("--json", action="store_true", help="print JSON for scripts")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = next((word for word in words if not word.startswith("-")), None)
    if name is not None and name not in COMMANDS and not words[0].startswith("-"):
        return _unknown(name)
    parsed = build_parser(name).parse_args(words)
    if parsed.version:
        from modelyard import __version__

        print(__version__)
        return 0
    if parsed.command is None:
        build_parser().print_help()
        return 2
    return _run(parsed)


def _module(command: str) -> ModuleType:
    return import_module(f"modelyard.cli.{command.replace('-', '_')}")


def _run(parsed: argparse.Namespace) -> int:
    from pathlib import Path

    from modelyard.spec.errors import YardError, disk_full, from_os_error

    try:
        code: int = _module(parsed.command).run(parsed)
        sys.stdout.flush()
    except YardError as error:
        return _tell(error, parsed)
    except BrokenPipeError:
        # The reader (head, less) has gone: not a mistake of anyone's.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _tell(from_os_error(error), parsed)
    except KeyboardInterrupt:
        print(
            "interrupted: run the same command again, it goes on where it stopped", file=sys.stderr
        )
        return 130
    except Exception as error:  # noqa: BLE001 - the last line of defence: a person gets one line, the trace is kept
        full = disk_full(error, Path.cwd())
        return _unexpected(error) if full is None else _tell(full, parsed)
    return code


def _tell(error: "YardError", parsed: argparse.Namespace) -> int:
    from modelyard.spec.errors import ProjectError

    if getattr(parsed, "json", False):
        import json

        body: dict[str, object] = {
            "error": type(error).__name__,
            "what": error.what,
            "mend": error.mend,
        }
        if isinstance(error, ProjectError):
            body["mistakes"] = [vars(mistake) for mistake in error.mistakes]
        print(json.dumps(body, default=str))
    else:
        print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _unexpected(error: Exception) -> int:
    if os.environ.get("YARD_DEBUG"):
        raise error
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="yard-crash-", suffix=".log", delete=False
    ) as file:
        traceback.print_exception(error, file=file)
    print(
        f"error: {type(error).__name__}: {error}\n"
        f"  mend: this is a fault of Modelyard; the trace is in {file.name}, YARD_DEBUG=1 shows it",
        file=sys.stderr,
    )
    return 1


def _unknown(name: str) -> int:
    from modelyard.spec.errors import nearest

    close = nearest(name, COMMANDS)
    hint = f"; did you mean `yard {close}`?" if close else ""
    print(
        f"error: no command {name!r}{hint}\n  mend: `yard --help` lists the commands",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
