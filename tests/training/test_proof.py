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
def test_another_number_of_workers_gives_the_same_loss_but_for_rounding(place: Place) -> None:
    model = place.root / "model.py"
    model.write_text(model.read_text().replace("dropout=0.1", "dropout=0.0"))
    project = place.project(workers=2)
    proof = verify_resume(project, place.dataset(project), place.store, steps=12)
    assert proof.holds and proof.loss_gap < 1e-5


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
