"""Whatever operation of the file system a checkpoint or a record dies at, the next start finds a good state."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

SCENARIOS = Path(__file__).parent / "crash_scenarios.py"


def run(scenario: str, *options: str, before: tuple[str, ...] = ()) -> Any:
    done = subprocess.run(
        [*before, sys.executable, str(SCENARIOS), scenario, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "operations"),
    [
        ("checkpoint", 38),
        ("first-checkpoint", 30),
        ("replaced", 45),
        ("two-workers", 45),
        ("worker-0-of-2", 35),
        ("worker-1-of-2", 9),  # and one more where it is the first to make the folder
        ("record", 5),
        ("first-record", 9),
        ("events", 5),
        ("attempts", 2),
        ("command", 20),
    ],
)
def test_killed_at_every_operation(scenario: str, operations: int) -> None:
    found = run(scenario)
    assert found["failures"] == []
    assert len(found["operations"]) >= operations and found["crashes"] > 2 * operations - 1
    print(f"{scenario}: {len(found['operations'])} operations, {found['crashes']} kills")


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario",
    ["checkpoint", "first-checkpoint", "replaced", "two-workers", "record", "first-record"],
)
def test_the_power_fails_at_every_operation(scenario: str) -> None:
    """What was not flushed is lost, in any of five ways."""
    found = run(scenario, "--power")
    assert found["failures"] == []
    assert found["crashes"] == 5 * (len(found["operations"]) + 1)


def test_a_careless_writer_would_be_found_out() -> None:
    assert len(run("careless")["failures"]) > 10
    assert len(run("careless", "--power")["failures"]) > 10


CALLS = {
    "mkdir": "mkdir",
    "mkdirat": "mkdir",
    "write": "write",
    "writev": "write",
    "pwrite64": "pwrite",
    "fsync": "fsync",
    "fdatasync": "fsync",
    "rename": "rename",
    "renameat": "rename",
    "renameat2": "exchange",
    "unlink": "unlink",
    "rmdir": "rmdir",
    "ftruncate": "ftruncate",
    "truncate": "ftruncate",
}


def changes(log: str, folder: Path) -> Counter[str]:
    """The system calls on ``folder`` that change something, by the names that the watch has for them."""
    found: Counter[str] = Counter()
    for line in log.partition("the-work-begins")[2].splitlines():
        call = re.search(r"(\w+)\(", line)
        if call is None or str(folder) not in line:
            continue
        name = call[1]
        if name == "unlinkat":
            found["rmdir" if "AT_REMOVEDIR" in line else "unlink"] += 1
        elif name in ("openat", "open"):
            found["open"] += "O_CREAT" in line or "O_TRUNC" in line
        elif name in CALLS:
            found[CALLS[name]] += 1
        else:
            raise AssertionError(line)
    return found


@pytest.mark.parametrize("scenario", ["checkpoint", "two-workers", "record", "events", "replaced"])
def test_no_operation_goes_past_the_watch(
    scenario: str, tmp_path: Path, require_program: Any
) -> None:
    """Every system call that changes the folder is one that the tests above die at."""
    folder, log = tmp_path / "place", tmp_path / "log"
    folder.mkdir()
    kinds = ",".join([*CALLS, "unlinkat", "openat", "open", "creat", "link", "linkat", "symlink"])
    tracer = (
        require_program("strace"),
        "-f",
        "-y",
        "-s",
        "300",
        "-o",
        str(log),
        f"-etrace={kinds}",
    )
    tried = subprocess.run([*tracer, "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"strace may not trace here: {tried.stderr[-200:]}")
    found = run(scenario, "--trace", str(folder), before=tracer)
    watched = Counter(found["operations"])
    for kind in ("create", "truncate", "use"):
        watched["open"] += watched.pop(kind, 0)
    seen = changes(log.read_text(), folder)
    assert {k: v for k, v in seen.items() if v} == {k: v for k, v in watched.items() if v}
