"""The checks that any backend must pass, for pytest: real steps, real processes, real files.

In a test module of your own::

    from modelyard.backends.contract import BackendContract, Case

    class TestMine(BackendContract):
        case = Case(backend="mine", root="tests/models", build="model:build")

The model should hold no dropout and no batch statistics, or one process and two cannot agree.
This file is also the program that the worker processes run (`contract_workers.py` starts them).
"""

import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelyard.backends import open_backend
from modelyard.backends.base import (
    Backend,
    Batch,
    OptimizerSettings,
    Snapshot,
    State,
    StepSettings,
)
from modelyard.backends.contract_losses import LossContract, classification
from modelyard.backends.contract_workers import run_plans
from modelyard.backends.snapshots import read_snapshot, write_snapshot
from modelyard.backends.source import build_model
from modelyard.spec.errors import ModelError, YardError
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import ImageInput, Signature, Tensor
from modelyard.spec.work import World
from modelyard.tasks.own_loss import OwnLoss

_CLASSES = ("a", "b", "c")
_DEADLINE = 120.0


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """A model that the backend trains in the checks."""

    backend: str
    root: str = "."
    build: str
    args: dict[str, Any] = {}
    input_shape: tuple[int, ...] = (1, 8, 8)
    wrong_args: dict[str, Any] = msgspec.field(default_factory=lambda: {"outputs": 7})
    """Arguments that make a model whose output does not fit three classes."""
    wrong_build: str = ""
    """The function that takes these, where ``build`` does not."""

    weights: tuple[float, ...] = ()
    """Of the three classes."""

    @property
    def task(self) -> TaskSpec:
        return classification("cross-entropy", _CLASSES, class_weights=self.weights)

    @property
    def signature(self) -> Signature:
        return Signature(
            inputs=(Tensor(name="input", dtype="float32", shape=(None, *self.input_shape)),),
            outputs=(Tensor(name="scores", dtype="float32", shape=(None, len(_CLASSES))),),
        )


class _Work(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker process of a check does."""

    case: Case
    world: World
    optimizer: OptimizerSettings
    out: str
    seed: int = 0
    steps: int = 0
    uneven: bool = False
    vanish_at: int | None = None
    """The step before which the process ends without a word."""


class BackendContract(LossContract):
    """Subclass it with a name that pytest collects, and set ``case``."""

    case: ClassVar[Case]

    def begun(self, loss: OwnLoss | None = None) -> tuple[Backend, State]:
        return _begin(self.case, OptimizerSettings(name="sgd"), loss=loss)

    def samples(self, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return _samples(self.case, 0, count)

    def test_steps_lower_the_loss(self) -> None:
        for name in ("sgd", "adam", "adamw"):
            backend, state = _begin(self.case, OptimizerSettings(name=name))
            state, losses = _train(backend, state, self.case, range(30))
            assert losses[-1] < 0.8 * losses[0], f"{name}: {losses[0]} -> {losses[-1]}"

    def test_two_workers_do_what_one_does(self, tmp_path: Path) -> None:
        """Also where a batch cannot be divided evenly, with and without clipping, and classes have weights."""
        optimizer = OptimizerSettings(name="sgd", weight_decay=0.01)
        case = msgspec.structs.replace(self.case, weights=(0.5, 1.0, 3.0))
        run_workers(tmp_path, case, optimizer, steps=8, uneven=True, seeds=(0, 0))
        backend, state = _begin(case, optimizer)
        state, losses = _train(backend, state, case, range(8), uneven=True)
        one = backend.snapshot(state)
        ends = [read_result(tmp_path, rank, "end") for rank in (0, 1)]
        _assert_equal(*ends)
        _assert_close(ends[0], one, 1e-5)
        np.testing.assert_allclose(
            sum(np.array(e.numbers["losses"]) for e in ends), losses, atol=1e-5
        )

    def test_workers_begin_equal_and_reduce_adds_up(self, tmp_path: Path) -> None:
        """Even where each built a model of its own."""
        run_workers(tmp_path, self.case, OptimizerSettings(name="adamw"), seeds=(1, 2))
        first, second = (read_result(tmp_path, rank, "begin") for rank in (0, 1))
        _assert_equal(first, second)
        assert first.numbers["reduced"] == second.numbers["reduced"] == [3.0, 20.0]

    def test_a_lost_worker_ends_the_other_with_a_message(self, tmp_path: Path) -> None:
        codes = start_workers(
            tmp_path, self.case, OptimizerSettings(name="sgd"), steps=4, vanish_at={1: 2}
        )
        assert codes == [3, 9], (tmp_path / "rank-0.log").read_text()
        assert "PeerLost: worker 0 of 2 lost" in (tmp_path / "rank-0.log").read_text()

    def test_a_restored_training_goes_on_bit_for_bit(self, tmp_path: Path) -> None:
        for name in ("sgd", "adamw"):
            optimizer = OptimizerSettings(name=name, weight_decay=0.01)
            backend, state = _begin(self.case, optimizer)
            state, _ = _train(backend, state, self.case, range(4))
            snapshot = backend.snapshot(state)
            _assert_equal(backend.view(state), snapshot)
            (tmp_path / name).mkdir()
            files = write_snapshot(tmp_path / name, snapshot)
            state, _ = _train(backend, state, self.case, range(4, 8))

            other, fresh = _begin(self.case, optimizer, seed=99)
            fresh = other.restore(fresh, read_snapshot(tmp_path / name, files))
            _assert_equal(other.snapshot(fresh), snapshot)  # later steps left the copy alone
            fresh, _ = _train(other, fresh, self.case, range(4, 8))
            _assert_equal(other.snapshot(fresh), backend.snapshot(state))

    def test_a_snapshot_of_another_model_is_refused(self) -> None:
        backend, state = _begin(self.case, OptimizerSettings(name="sgd"))
        tensors = dict(backend.snapshot(state).tensors)
        name = next(key for key in tensors if key.startswith("model."))
        tensors[name] = np.zeros((3, 3, 3, 3, 3), dtype=np.float32)
        error = _refusal(backend.restore, state, Snapshot(tensors=tensors, numbers={}))
        assert name.removeprefix("model.") in error.what and error.mend

    def test_the_seed_decides_the_first_weights(self) -> None:
        optimizer = OptimizerSettings(name="sgd")
        snapshots = []
        for seed in (1, 1, 2):
            backend, state = _begin(self.case, optimizer, seed=seed)
            snapshots.append(backend.snapshot(state))
        _assert_equal(snapshots[0], snapshots[1])
        assert any(
            not np.array_equal(array, snapshots[2].tensors[key])
            for key, array in snapshots[0].tensors.items()
        )

    def test_evaluation_gives_outputs_and_changes_nothing(self) -> None:
        backend, state = _begin(self.case, OptimizerSettings(name="sgd"))
        before = backend.snapshot(state)
        inputs, _ = _samples(self.case, 0, 6)
        together = backend.evaluate(state, inputs)
        assert together.shape == (6, len(_CLASSES)) and together.dtype == np.float32
        alone = np.concatenate([backend.evaluate(state, inputs[i : i + 1]) for i in range(6)])
        np.testing.assert_allclose(together, alone, atol=1e-5)
        _assert_equal(backend.snapshot(state), before)

    def test_the_export_answers_as_the_model_does(self, tmp_path: Path) -> None:
        import onnxruntime

        backend, state = _begin(self.case, OptimizerSettings(name="adamw"))
        state, _ = _train(backend, state, self.case, range(3))
        path = tmp_path / "model.onnx"
        backend.export(state, path, self.case.signature)
        assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for count in (1, 3, 64):
            inputs, _ = _samples(self.case, count, count)
            (answer,) = session.run(["scores"], {"input": inputs})
            np.testing.assert_allclose(answer, backend.evaluate(state, inputs), atol=1e-4)
        state, _ = _train(backend, state, self.case, range(3, 5))  # still trains afterwards

    def test_pictures_as_stored_give_what_their_model_form_gives(self) -> None:
        shape = self.case.input_shape
        if len(shape) != 3 or shape[0] not in (1, 3):
            return  # not a picture's shape
        spec = ImageInput(
            height=shape[1],
            width=shape[2],
            color="grey" if shape[0] == 1 else "rgb",
            mean=(0.4, 0.5, 0.6)[: shape[0]],
            std=(0.2, 0.3, 0.25)[: shape[0]],
        )
        stored = np.random.default_rng(0).integers(0, 256, (8, *shape), dtype=np.uint8)
        mean, std = (np.array(v).reshape(-1, 1, 1) for v in (spec.mean, spec.std))
        finished = ((stored / 255 - mean) / std).astype(np.float32)
        ends, outputs = [], []
        for inputs in (stored, finished):
            backend = open_backend(self.case.backend)
            optimizer = OptimizerSettings(name="sgd")
            state = _begin_with(backend, self.case, optimizer, 0, spec)
            batch = Batch(inputs=inputs, targets=np.arange(8) % 3, global_size=8)
            outputs.append(backend.evaluate(state, inputs))
            state, _ = backend.step(state, batch, StepSettings(learning_rate=0.1, seed=0))
            ends.append(backend.snapshot(state))
        np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-4)
        _assert_close(ends[0], ends[1], 1e-4)

    def test_a_model_that_does_not_fit_the_task_is_refused(self) -> None:
        build, args = self.case.wrong_build or self.case.build, self.case.wrong_args
        wrong = msgspec.structs.replace(self.case, build=build, args=args)
        error = _refusal(_begin, wrong, OptimizerSettings(name="sgd"))
        assert f"(2, {len(_CLASSES)})" in error.what
        assert f"{len(_CLASSES)} outputs" in error.mend


def _begin(
    case: Case, optimizer: OptimizerSettings, seed: int = 0, *, loss: OwnLoss | None = None
) -> tuple[Backend, State]:
    backend = open_backend(case.backend)
    return backend, _begin_with(backend, case, optimizer, seed, loss=loss)


def _begin_with(
    backend: Backend,
    case: Case,
    optimizer: OptimizerSettings,
    seed: int,
    input: ImageInput | None = None,  # noqa: A002
    loss: OwnLoss | None = None,
) -> State:
    backend.seed(seed)
    root = Path(case.root)
    model = build_model(root, case.build, case.args, case.signature, case.task, seed=seed)
    return backend.begin(model, case.task, optimizer, case.signature, input, loss)


def _samples(case: Case, seed: int, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Three kinds of noise around 0, 1 and 2: easily told apart."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, len(_CLASSES), count)
    noise = generator.normal(0, 0.3, (count, *case.input_shape))
    offsets = targets.reshape(-1, *[1] * len(case.input_shape))
    return (noise + offsets).astype(np.float32), targets


def _train(
    backend: Backend,
    state: State,
    case: Case,
    steps: range,
    *,
    world: World | None = None,
    uneven: bool = False,
) -> tuple[State, list[float]]:
    """Steps on the worker's share of batches that depend on the step's number alone.

    They are of 8 samples; with ``uneven`` each second one is of 5, and its gradients are clipped.
    """
    place = world or World(rank=0, size=1, rendezvous="")
    losses = []
    for step in steps:
        odd = uneven and step % 2 == 1
        batch_size, clip_norm = (5, 0.1) if odd else (8, None)
        inputs, targets = _samples(case, step, batch_size)
        share = np.array_split(np.arange(batch_size), place.size)[place.rank]
        batch = Batch(inputs=inputs[share], targets=targets[share], global_size=batch_size)
        settings = StepSettings(learning_rate=0.01, seed=step, clip_norm=clip_norm)
        state, result = backend.step(state, batch, settings)
        losses.append(float(result.loss))
    return state, losses


def run_workers(
    folder: Path,
    case: Case,
    optimizer: OptimizerSettings,
    *,
    seeds: tuple[int, int],
    **work: Any,
) -> None:
    """Two worker processes that must both end well; ``read_result`` reads what they wrote."""
    codes = start_workers(folder, case, optimizer, seeds=seeds, **work)
    logs = "\n".join((folder / f"rank-{rank}.log").read_text() for rank in (0, 1))
    assert codes == [0, 0], f"the workers ended with {codes}:\n{logs}"


def start_workers(
    folder: Path,
    case: Case,
    optimizer: OptimizerSettings,
    *,
    seeds: tuple[int, int] = (0, 0),
    vanish_at: dict[int, int] | None = None,
    rendezvous: str = "",
    **work: Any,
) -> list[int]:
    """Exit codes of two worker processes that meet over a file in ``folder``, or where they are told."""
    folder.mkdir(parents=True, exist_ok=True)
    place = rendezvous or (folder / "rendezvous").resolve().as_uri()
    plans = []
    for rank in (0, 1):
        world = World(rank=rank, size=2, rendezvous=place)
        plan = _Work(
            case=case,
            world=world,
            optimizer=optimizer,
            out=str(folder),
            seed=seeds[rank],
            vanish_at=(vanish_at or {}).get(rank),
            **work,
        )
        plans.append(folder / f"rank-{rank}.json")
        plans[-1].write_bytes(msgspec.json.encode(plan))
    return run_plans(case.backend, "modelyard.backends.contract", plans, _DEADLINE)


def read_result(folder: Path, rank: int, moment: str) -> Snapshot:
    """The training state of one worker at ``begin`` or ``end``."""
    return read_snapshot(folder / f"{moment}-{rank}")


def _write(folder: Path, rank: int, moment: str, snapshot: Snapshot, **numbers: Any) -> None:
    place = folder / f"{moment}-{rank}"
    place.mkdir()
    numbers = {**snapshot.numbers, **numbers}
    if snapshot.parts:  # of sharded weights: where this worker's slices lie
        numbers["parts"] = msgspec.to_builtins(snapshot.parts)
    write_snapshot(place, msgspec.structs.replace(snapshot, numbers=numbers, parts={}))


def _assert_equal(left: Snapshot, right: Snapshot) -> None:
    assert left.tensors.keys() == right.tensors.keys()
    for key, array in left.tensors.items():
        np.testing.assert_array_equal(array, right.tensors[key], err_msg=key)
        assert array.dtype == right.tensors[key].dtype, key


def _assert_close(left: Snapshot, right: Snapshot, limit: float) -> None:
    assert left.tensors.keys() == right.tensors.keys()
    for key, array in left.tensors.items():
        np.testing.assert_allclose(array, right.tensors[key], atol=limit, err_msg=key)


def _refusal(call: Any, *arguments: Any) -> ModelError:
    try:
        call(*arguments)
    except ModelError as error:
        return error
    raise AssertionError("a ModelError was expected")


def _work(plan: _Work) -> None:
    """One worker process of a check."""
    backend, out, world = open_backend(plan.case.backend), Path(plan.out), plan.world
    with backend.join(world, device="cpu", threads=1):
        state = _begin_with(backend, plan.case, plan.optimizer, plan.seed)
        reduced = backend.reduce(np.array([1.0 + world.rank, 10.0]))
        _write(out, world.rank, "begin", backend.snapshot(state), reduced=reduced.tolist())
        losses: list[float] = []
        for step in range(plan.steps):
            if step == plan.vanish_at:
                os._exit(9)
            state, more = _train(
                backend, state, plan.case, range(step, step + 1), world=world, uneven=plan.uneven
            )
            losses += more
        _write(out, world.rank, "end", backend.snapshot(state), losses=losses)


if __name__ == "__main__":
    try:
        _work(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=_Work))
    except YardError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(3)
