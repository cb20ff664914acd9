"""Start-up time of the command and of the package, each in a fresh process.

Run with ``python -m benchmarks.start_up [--rounds N] [--json]``. The bar: ``yard --help`` takes at
most 150 ms, or five times ``python -c pass``.
"""

import subprocess
import sys
import time
from functools import partial

from benchmarks.harness import Contender, compare, options, show

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import modelyard": ["-c", "import modelyard"],
    "yard --help": ["-m", "modelyard.cli", "--help"],
    "yard --version": ["-m", "modelyard.cli", "--version"],
    "import numpy": ["-c", "import numpy"],
    "import torch": ["-c", "import torch"],
}


def milliseconds(arguments: list[str]) -> float:
    """From start to end of one process that must succeed."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return (time.perf_counter() - began) * 1e3


def main() -> None:
    chosen = options(__doc__ or "", rounds=9).parse_args()
    contenders = [Contender(name, partial(milliseconds, args)) for name, args in COMMANDS.items()]
    rows = compare(contenders, chosen.rounds)
    show("start-up, fresh processes", "ms", rows, as_json=chosen.json)


if __name__ == "__main__":
    main()
