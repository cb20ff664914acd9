"""Start a worker that cannot outlive its parent: ``python -I -S launcher.py PARENT_PID PROGRAM ARGUMENT…``.

Run as a file before the worker's own interpreter takes its place (same pid), so that nothing of
Modelyard is imported here. On Linux the kernel then kills the worker when the thread that started it
ends, whatever ended it; elsewhere the worker watches its parent by itself.
"""

import os
import sys

PR_SET_PDEATHSIG = 1
SIGKILL = 9


def main(arguments: list[str]) -> None:
    parent, program = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        die_with_parent()
    if os.getppid() != parent:  # it ended before the line above took effect
        sys.exit(1)
    os.execv(program[0], program)  # noqa: S606  arguments are a list, no shell


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0:
        reason = os.strerror(ctypes.get_errno())
        sys.stderr.write(f"this worker will not end by itself with its parent: {reason}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
