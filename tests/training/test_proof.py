"""The proof of an exact resume: it holds for honest models, and fails for one that cannot be resumed."""

from pathlib import Path
from typing import Any

import pytest

from modelyard.cli.__main__ import main
from modelyard.spec.errors import UsageError
from modelyard.spec.records import Proof, Run
from modelyard.training.order import PROOF, RUN
from modelyard.training.proof import verify_resume
from modelyard.training.train import train

Place = Any
FORGETFUL = """
import torch
from torch import nn

class Forgetful(nn.Module):
    "Counts its calls outside of its state: a checkpoint knows nothing of it."
    def __init__(self, outputs):
        super().__init__()
        self.layer = nn.Linear(64, outputs)
        self.calls = 0

    def forward(self, x):
        if self.training:
            self.calls += 1
        return self.layer(x.flatten(1)) * (1 + 0.1 * self.calls)

def build(outputs):
    return Forgetful(outputs)
"""
MIXING = """
from torch import nn

def build(outputs):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, outputs)
    )
"""
ALWAYS_RANDOM = """
import torch
from torch import nn

class Noisy(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.layer = nn.Linear(64, outputs)
    def forward(self, x):
        return self.layer(x.flatten(1) + torch.rand(len(x), 64))

def build(outputs):
    return Noisy(outputs)
"""
BREAKING = """
import os, sys
from modelyard.backends.pytorch import PyTorch
from modelyard.backends.pytorch_parallel import Gathered
from modelyard.data.cursor import Cursor
from modelyard.data.feed import Feed
# This module is read twice by a worker: the second time, what it broke is broken already.
honest = sys.__dict__.setdefault("honest", (Feed.take, Cursor.share, PyTorch.restore))
honest_take, honest_share, honest_restore = honest
RESUMED = os.environ.get("MODELYARD_ATTEMPT", "0") != "0"
"""
BROKEN = {
    "a batch is left out after a resume": """
def take(self, step):
    return honest_take(self, step + 1 if RESUMED else step)
Feed.take = take
""",
    "the order of a batch is lost in a resume": """
def take(self, step):
    made = honest_take(self, step)
    if RESUMED:
        made.inputs[:] = made.inputs[::-1].copy()
        made.targets[:] = made.targets[::-1].copy()
    return made
Feed.take = take
""",
    "the optimizer's state is not restored": """
def restore(self, state, snapshot):
    kept = self.snapshot(state).tensors
    tensors = {**snapshot.tensors, **{n: a for n, a in kept.items() if n.startswith("optimizer.")}}
    tensors = {n: a * 0 if n.endswith("exp_avg") else a for n, a in tensors.items()}
    return honest_restore(self, state, type(snapshot)(tensors=tensors, numbers=snapshot.numbers))
if RESUMED:
    PyTorch.restore = restore
""",
    "workers of another number take the same samples": """
def share(self, step, rank, size):
    return honest_share(self, step, 0, size)
Cursor.share = share
""",
    "workers of another number do not exchange gradients": """
def finish(self, share):
    pass
Gathered.finish = finish
""",
}
FINDS = {
    "a batch is left out after a resume": {"order", "state"},
    "the order of a batch is lost in a resume": {"order", "state"},
    "the optimizer's state is not restored": {"state"},
    "workers of another number take the same samples": {"order", "loss"},
    "workers of another number do not exchange gradients": {"loss"},
}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_training_goes_on_bit_for_bit(place: Place, workers: int) -> None:
    """With dropout, momentum and, for two workers, sums over both."""
    project = place.project(workers=workers)
    dataset = place.dataset(project)
    proof = verify_resume(project, dataset, place.store, steps=16)
    assert proof.holds and proof.different == () and proof.tensors > 8
    assert (proof.workers, proof.other_workers) == (workers, 3 - workers)
    assert 0 < proof.resumed_at <= proof.killed_at == 8 < proof.steps == 16
    assert proof.same_order
    assert list(place.store.root.glob(".proof-*")) == []
    (folder,) = (place.store.root / "runs").iterdir()
    assert Proof.from_json((folder / PROOF).read_bytes()) == proof
    run = train(project.model_copy(update={"train": project.train}), dataset, place.store)
    assert run.proofs == (proof,) and Path(run.folder) == folder
    again = verify_resume(project, dataset, place.store, steps=16)
    assert Run.from_json((folder / RUN).read_bytes()).proofs == (again,)


@pytest.mark.slow
def test_another_number_of_workers_gives_the_same_loss_but_for_rounding(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """With nothing random in the model it is compared as it is trained, and nothing is said of dropout."""
    model = place.root / "model.py"
    model.write_text(model.read_text().replace("dropout=0.1", "dropout=0.0"))
    assert (
        main(["verify-resume", "--project", str(place.root), "train.workers=2", "--steps", "12"])
        == 0
    )
    said = capsys.readouterr().out
    assert "within rounding" in said and "dropout" not in said and "each of 12 batches" in said
    proof = proof_of(place)
    assert proof.loss_gap < 1e-5 and proof.loss_decides and not proof.held_still


@pytest.mark.slow
def test_sharded_workers_go_on_bit_for_bit(place: Place) -> None:
    """FSDP2: each worker has slices; the same at two workers, and one worker takes the whole from them."""
    project = place.project(workers=2, parallel="shard")
    proof = verify_resume(project, place.dataset(project), place.store, steps=12)
    assert proof.holds and proof.different == () and proof.same_order
    assert (proof.workers, proof.other_workers) == (2, 1) and proof.loss_decides


@pytest.mark.slow
def test_a_model_that_draws_and_mixes_is_held_still_for_that(place: Place) -> None:
    (place.root / "model.py").write_text(MIXING)
    project = place.project(workers=1)
    proof = verify_resume(project, place.dataset(project), place.store, steps=12)
    assert proof.holds and proof.held_still and proof.loss_decides and proof.loss_gap < 1e-4


@pytest.mark.slow
def test_a_model_that_always_draws_is_not_judged_by_its_loss(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    (place.root / "model.py").write_text(ALWAYS_RANDOM)
    assert main(["verify-resume", "--project", str(place.root), "--steps", "12"]) == 0
    assert "says nothing" in capsys.readouterr().out


def proof_of(place: Place) -> Proof:
    (file,) = (place.store.root / "runs").glob(f"*/{PROOF}")
    return Proof.from_json(file.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN)
def test_a_resume_that_is_broken_on_purpose_is_found_out(
    place: Place, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the workers themselves: the model's module changes the code that they run."""
    with (place.root / "model.py").open("a") as file:
        file.write(BREAKING + BROKEN[broken])
    assert main(["verify-resume", "--project", str(place.root), "--steps", "12"]) == 1
    assert "NOT exact" in capsys.readouterr().out
    proof = proof_of(place)
    found = {
        "order": not proof.same_order,
        "state": bool(proof.different),
        "loss": proof.loss_gap > proof.loss_allowed,
    }
    assert found == {name: name in FINDS[broken] for name in found}


@pytest.mark.slow
def test_a_model_with_memory_outside_of_its_state_is_found_out(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    (place.root / "model.py").write_text(FORGETFUL)
    assert main(["verify-resume", "--project", str(place.root), "--steps", "12"]) == 1
    said = capsys.readouterr().out
    assert "NOT exact" in said and "model.layer.weight" in said


def test_too_few_steps_are_refused(place: Place) -> None:
    project = place.project()
    with pytest.raises(UsageError, match="too few"):
        verify_resume(project, place.dataset(project), place.store, steps=3)
