"""Two workers, in pieces and in slices, take the very steps of the rules: every optimizer, groups, freezing, clipping.

This file is also the program that the worker processes run.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import rules

sys.path.pop(0)
from msgspec.structs import replace

from modelyard.backends.base import Backend, Batch, Execution, StepSettings
from modelyard.spec.work import World

SHARES = (slice(0, 10), slice(10, 16))
CASES = ("pytorch replicate", "pytorch shard", "jax replicate", "keras replicate")


def opened(name: str) -> Backend:
    from modelyard.backends import open_backend

    return open_backend(name)


def linear(name: str) -> object:
    if name == "pytorch":
        from torch import nn

        return nn.Linear(rules.FEATURES, rules.CLASSES)
    if name == "keras":
        import keras

        inputs = keras.Input((rules.FEATURES,))
        return keras.Sequential([inputs, keras.layers.Dense(rules.CLASSES)])
    import jax.numpy as jnp

    def init(key: Any) -> Any:
        return {"kernel": jnp.zeros((rules.FEATURES, rules.CLASSES)), "bias": jnp.zeros(3)}

    return init, lambda weights, x: x @ weights["kernel"] + weights["bias"]


def work(folder: Path, name: str, parallel: Any, rank: int) -> None:
    """Train each kind as worker ``rank``; a slice of a weight stays with its worker, so outputs are told."""
    backend = opened(name)
    world = World(rank=rank, size=2, rendezvous=(folder / "rendezvous").as_uri())
    whole, found = opened(name), {}
    with backend.join(world, device="cpu", threads=1):
        for kind, chosen in rules.TREATED.items():
            # Of whole shares and, in worker 0, of three pieces; slices of weights are gathered for each piece.
            execution = Execution(parallel=parallel, micro_batch=4)
            state = backend.begin(
                linear(name), rules.TASK, replace(chosen, execution=execution), rules.SIGNATURE
            )
            alone = whole.begin(linear(name), rules.TASK, chosen, rules.SIGNATURE)
            state = backend.restore(state, rules.given(whole.snapshot(alone)))
            for seed, (x, y) in enumerate(rules.batches()):
                share = SHARES[rank]
                batch = Batch(inputs=x[share], targets=y[share], global_size=rules.SAMPLES)
                settings = StepSettings(learning_rate=rules.RATE, seed=seed, clip_value=rules.CLIP)
                state, _ = backend.step(state, batch, settings)
            for pattern in chosen.freeze:
                assert not [
                    key
                    for key in backend.snapshot(state).tensors
                    if rules.fnmatch(key, f"optimizer.{pattern}.*")
                ]
            found[kind] = backend.evaluate(state, next(iter(rules.batches()))[0])
    np.savez(folder / f"end-{rank}.npz", **found)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_workers(case: str, tmp_path: Path) -> None:
    name, _, parallel = case.partition(" ")
    pytest.importorskip({"pytorch": "torch"}.get(name, name))
    children = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path), name, parallel, str(rank)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]  # fmt: skip
    told = [child.communicate(timeout=250)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], "\n".join(told)
    ends = [np.load(tmp_path / f"end-{rank}.npz") for rank in (0, 1)]
    x = next(iter(rules.batches()))[0].astype(np.float64)
    for kind, chosen in rules.TREATED.items():
        kernel, bias = rules.by_hand(chosen, rules.CLIP)
        np.testing.assert_array_equal(ends[0][kind], ends[1][kind])
        np.testing.assert_allclose(ends[0][kind], x @ kernel + bias, atol=1e-4, err_msg=kind)


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
