"""The Keras backend on JAX and on PyTorch: the contract, also with two workers, every optimizer, and averaged weights.

Keras chooses what it stands on when it is imported, so these are checks of other files in a process of their own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHECKS = (
    "test_keras.py::TestContract",
    "test_keras.py::test_workers_agree_on_running_statistics",
    "test_keras.py::test_samples_and_pieces_change_nothing",
    "test_keras.py::test_memory_that_is_written_again_after_a_step_was_read_by_then",
    "test_update_rules.py::test_keras",
    "test_average.py",
)
OF_TWO_WORKERS = (
    "test_two_workers_do_what_one_does",
    "test_workers_begin_equal_and_reduce_adds_up",
    "test_a_lost_worker_ends_the_other_with_a_message",
    "test_workers_agree_on_running_statistics",
    "test_two_workers_keep_what_one_keeps[keras-replicate]",
)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_it_keeps_what_it_keeps_on_tensorflow(framework: str) -> None:
    pytest.importorskip("keras")
    pytest.importorskip(framework)
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, *(str(HERE / check) for check in CHECKS), "-k", "keras"],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": framework},
        timeout=580,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    ends = re.findall(r"::(\w[^:\n]*) (PASSED|SKIPPED)", done.stdout)
    passed = {name for name, end in ends if end == "PASSED"}
    assert set(OF_TWO_WORKERS) <= passed
    # A pattern that selects nothing would prove nothing.
    assert len(passed) > 40
    assert {name for name, _ in ends} - passed <= {
        "test_two_workers_keep_what_one_keeps[keras-shard]"
    }
