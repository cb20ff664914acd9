"""For all tests: programs that are not Python, and the promise that no process is left behind."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest


@pytest.fixture
def require_program() -> Callable[[str], str]:
    """The path of a program; where it is missing the test is skipped, or fails if it must not be.

    ``MODELYARD_REQUIRE_SERVICES=1`` (set by ``.ci/run``) says that it must not.
    """

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            reason = f"the program {name!r} is not installed (Debian: apt-get install {name})"
            if os.environ.get("MODELYARD_REQUIRE_SERVICES"):
                pytest.fail(f"{reason}, and MODELYARD_REQUIRE_SERVICES says that it must be")
            pytest.skip(reason)
        return path

    return find


def processes_about(folder: Path) -> list[psutil.Process]:
    """Running processes that name ``folder`` in their command line, other than this one."""
    found = []
    for process in psutil.process_iter():
        try:
            names_it = any(str(folder) in word for word in process.cmdline())
            if names_it and process.pid != os.getpid() and process.status() != "zombie":
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[Path]:
    """``tmp_path``, with the check that no process that was given a path in it outlives the test."""
    yield tmp_path
    left = processes_about(tmp_path)
    told = [(process.pid, process.cmdline()) for process in left]
    for process in left:
        process.kill()
    assert not told, f"left behind: {told}"
