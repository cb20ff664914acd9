"""Out of memory: half as many samples at once, the same training, and the store remembers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.backends.base import Execution
from modelyard.spec.errors import TrainingError
from modelyard.spec.records import AnyEvent, Noticed
from modelyard.store import open_store
from modelyard.training import checkpoints
from modelyard.training.execution import Chosen, read_execution, write_execution
from modelyard.training.memory import MEMORY, fewer_at_once, recall, remember
from modelyard.training.order import WorkOrder
from modelyard.training.recovery import Decision, Failure
from modelyard.training.train import train

Place = Any
"""conftest.Place: a project folder, its store, and commands run on it."""
HUNGRY = """
import os, resource
import torch
from torch import nn

class Hungry(nn.Module):
    "From the fifth step on, worker 1 may only have 700 MB more, and n samples need n² times {unit}."
    def __init__(self, outputs):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, outputs))
        self.steps = 0
    def forward(self, x):
        if self.training and os.environ["RANK"] == "1":
            self.steps += 1
            if self.steps == 5:
                with open("/proc/self/statm") as file:
                    now = int(file.read().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (now + 700_000_000, resource.RLIM_INFINITY))
            if self.steps >= 5:
                torch.empty(len(x) ** 2 * {unit}, dtype=torch.uint8)
        return self.layers(x)

def build(outputs):
    return Hungry(outputs)
"""


def failure(kind: str = "OutOfMemory") -> Failure:
    return Failure(
        rank=1, time=0.0, type=kind, what="out of memory", device="cpu, 1 GiB", known=True
    )


def order_in(place: Place, **train_fields: object) -> WorkOrder:
    from modelyard.training.train import _order

    project = place.project(**train_fields)
    folder = place.store.run_folder("digits-1")
    folder.mkdir(parents=True)
    return _order(project, place.dataset(project), folder, None)


def test_half_is_taken_until_one_is_left_and_what_fits_is_remembered(place: Place) -> None:
    order = order_in(place, batch_size=12, workers=2)
    order = order.from_json(order.to_json().replace(b'"memory_key": ""', b'"memory_key": "k"'))
    given, taken = Decision(action="give-up", failure=failure()), []
    for _ in range(2):
        decision, words = fewer_at_once(order, place.store, given)
        assert decision.action == "restart" and not decision.budgeted
        assert "worker 1 ran out of memory" in words and "the batch stays 12" in words
        chosen = read_execution(Path(order.folder))
        assert chosen is not None
        taken.append(chosen.execution.micro_batch)
    assert taken == [3, 1]
    assert recall(place.store.root, "k") == {"cpu, 1 GiB": 1} and not recall(place.store.root, "x")
    decision, words = fewer_at_once(order, place.store, given)
    assert decision.action == "give-up" and not words and decision.failure is not None
    assert decision.failure.type == "TrainingError" and "one sample" in decision.failure.what


def test_other_ends_are_no_matter_of_memory(place: Place) -> None:
    order = order_in(place)
    for decision in (
        Decision(action="done"),
        Decision(action="restart"),
        Decision(action="interrupted", failure=failure()),
        Decision(action="give-up", failure=failure("ModelError")),
    ):
        assert fewer_at_once(order, place.store, decision) == (decision, "")


def test_the_choice_of_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    chosen = Chosen(device="cpu, 1 GiB", execution=Execution(precision="bfloat16", micro_batch=4))
    write_execution(tmp_path, chosen)
    assert read_execution(tmp_path) == chosen
    next(tmp_path.iterdir()).write_text("{")
    assert read_execution(tmp_path) is None


def test_a_damaged_memory_knows_nothing_and_is_written_anew(tmp_path: Path) -> None:
    root = open_store(tmp_path / "store").root
    (root / MEMORY).write_text("nonsense")
    assert recall(root, "k") == {}
    remember(root, "k", "cpu", 8)
    remember(root, "other", "cpu", 2)
    assert recall(root, "k") == {"cpu": 8}


def weights(folder: Path) -> dict[str, np.ndarray]:
    newest, _ = checkpoints.latest(folder)
    assert newest is not None
    return checkpoints.load(newest)[0].tensors


def test_a_worker_out_of_memory_leads_to_smaller_pieces_of_the_same_batch(place: Place) -> None:
    """A real refusal of the allocator, in one of two workers, between two checkpoints."""
    (place.root / "model.py").write_text(HUNGRY.format(unit=1_000_000))
    fields = {"workers": 2, "epochs": 1, "checkpoint_seconds": 0.01, "max_restarts": 0}
    seen: list[AnyEvent] = []
    project = place.project(**fields)
    run = train(project, place.dataset(project), place.store, observers=[seen.append])
    said = [event.message for event in seen if isinstance(event, Noticed)]
    assert any("worker 1 ran out of memory" in m and "takes 16 samples at once" in m for m in said)
    assert run.state == "complete" and run.execution["micro_batch"] == 16
    assert run.step == 20 and run.restarts == 1

    # The next run of this model starts with what fits, and so never runs out.
    seen.clear()
    other = place.project(**fields, seed=1)
    again = train(other, place.dataset(other), place.store, observers=[seen.append])
    assert again.restarts == 0 and again.execution["micro_batch"] == 16

    # And the weights are those of a training that took so few from the start.
    (place.store.root / MEMORY).unlink()
    small = place.project(**fields, micro_batch=16)
    plain = train(small, place.dataset(small), place.store)
    left, right = weights(Path(run.folder)), weights(Path(plain.folder))
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_allclose(array, right[name], atol=1e-5, err_msg=name)


def test_a_model_too_large_for_one_sample_is_one_clear_error(place: Place) -> None:
    (place.root / "model.py").write_text(HUNGRY.format(unit=10_000_000_000))
    project = place.project(workers=2, epochs=1, batch_size=4, checkpoint_seconds=0.01)
    with pytest.raises(TrainingError, match="one sample at a time") as caught:
        train(project, place.dataset(project), place.store)
    assert "smaller model" in caught.value.mend
