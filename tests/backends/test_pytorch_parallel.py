"""What workers exchange: gradients of every kind, running statistics, buffers, and parts that nobody used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.backends.base import Execution, OptimizerSettings
from modelyard.backends.contract import Case, _begin, _train, read_result, run_workers

MODELS = str(Path(__file__).parent / "models")


def case(**args: Any) -> Case:
    return Case(backend="pytorch", root=MODELS, build="odd:build", args=args, input_shape=(1, 4, 4))


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_weights_of_two_kinds_are_exchanged_beside_the_backward_pass(
    tmp_path: Path, micro_batch: int | None
) -> None:
    """By DDP, as on GPUs; with micro-batches only the last one exchanges."""
    settings = OptimizerSettings(name="adamw", execution=Execution(micro_batch=micro_batch))
    run_workers(tmp_path, case(kind="mixed"), settings, seeds=(0, 1), steps=4, uneven=True)
    backend, state = _begin(case(kind="mixed"), settings, 0)
    _train(backend, state, case(kind="mixed"), range(4), uneven=True)
    ends = [read_result(tmp_path, rank, "end").tensors for rank in (0, 1)]
    for name, array in backend.snapshot(state).tensors.items():
        np.testing.assert_array_equal(ends[0][name], ends[1][name], err_msg=name)
        np.testing.assert_allclose(ends[0][name], array, atol=2e-5, err_msg=name)


def test_buffers_become_those_of_worker_0_and_what_nobody_used_is_left_alone(
    tmp_path: Path,
) -> None:
    settings = OptimizerSettings(name="adamw", weight_decay=0.5)
    run_workers(tmp_path, case(kind="counting"), settings, seeds=(0, 1), steps=4)
    begin = read_result(tmp_path, 0, "begin").tensors
    first, second = (read_result(tmp_path, rank, "end").tensors for rank in (0, 1))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    np.testing.assert_array_equal(first["model.unused.weight"], begin["model.unused.weight"])
    assert not any("unused" in name for name in first if name.startswith("optimizer."))
    assert first["model.largest"] != 0 and first["model.norm.num_batches_tracked"] == 4
