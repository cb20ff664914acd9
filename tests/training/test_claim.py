"""One command at a time trains a run; what a killed one held is free at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelyard.spec.errors import StoreError, TrainingError, UsageError
from modelyard.training.claim import claim_run, hold_as_worker, wait_for_old_workers

HOLDER = """
import sys, time
from pathlib import Path
from modelyard.training.claim import claim_run, hold_as_worker
with claim_run(Path(sys.argv[1])):
    handle = hold_as_worker(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_claim_is_refused_while_held_and_free_after_a_kill(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match=f"process {holder.pid}"), claim_run(tmp_path):
        pass
    with pytest.raises(TrainingError, match="earlier command"):
        wait_for_old_workers(tmp_path, seconds=0.1)
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    with claim_run(tmp_path):
        wait_for_old_workers(tmp_path, seconds=5)


def test_workers_hold_together(tmp_path: Path) -> None:
    first, second = hold_as_worker(tmp_path), hold_as_worker(tmp_path)
    os.close(first)
    with pytest.raises(TrainingError):
        wait_for_old_workers(tmp_path, seconds=0)
    os.close(second)
    wait_for_old_workers(tmp_path, seconds=0)


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StoreError, match="runs"), claim_run(tmp_path / "runs" / "x"):
        pass
