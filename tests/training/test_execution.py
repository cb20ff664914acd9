"""A run keeps the way in which its first attempt computed steps, and a checkpoint suits every way."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.backends.base import Execution
from modelyard.backends.source import code_digest
from modelyard.spec.records import AnyEvent, Noticed
from modelyard.training import checkpoints
from modelyard.training.execution import EXECUTION, Chosen, read_execution
from modelyard.training.inputs import inputs_of, run_id
from modelyard.training.train import train

Place = Any
"""conftest.Place: a project folder, its store, and commands run on it."""
TWO = {"workers": 2, "epochs": 2}


def identifier(place: Place, **fields: Any) -> str:
    project = place.project(**fields)
    code = code_digest(project.root, project.model.build)
    return run_id(inputs_of(project, place.dataset(project), code))


def weights(folder: Path | str) -> dict[str, Any]:
    newest, _ = checkpoints.latest(Path(folder))
    assert newest is not None
    return checkpoints.load(newest)[0].tensors


def assert_close(left: dict[str, Any], right: dict[str, Any], limit: float) -> None:
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_allclose(array, right[name], atol=limit, rtol=0, err_msg=name)


def without_dropout(place: Place) -> None:
    model = place.root / "model.py"
    model.write_text(model.read_text().replace("dropout=0.1", "dropout=0.0"))


def test_the_first_choice_is_kept_by_every_later_command(place: Place) -> None:
    """Whatever a new measurement would say: only so is a resumed run the same bit for bit."""
    seen: list[AnyEvent] = []
    fields = {"epochs": 1, "precision": "auto", "compile": "auto"}
    project = place.project(**fields)
    run = train(project, place.dataset(project), place.store, observers=[seen.append])
    said = [event.message for event in seen if isinstance(event, Noticed)]
    assert any("not compiled" in message for message in said)  # it takes less than a minute
    chosen = read_execution(Path(run.folder))
    assert chosen is not None and chosen.execution.precision in ("float32", "bfloat16")
    assert run.execution["precision"] == chosen.execution.precision
    assert run.execution["compile"] is False

    # Another choice in the folder is obeyed, and nothing is measured or said again.
    other = "bfloat16" if chosen.execution.precision == "float32" else "float32"
    forced = Chosen(device=chosen.device, execution=Execution(precision=other, samples=64))  # type: ignore[arg-type]
    folder = Path(run.folder)
    for name in ("run.json", "result.json", "checkpoints"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / EXECUTION).write_bytes(forced.to_json())
    seen.clear()
    again = train(project, place.dataset(project), place.store, observers=[seen.append])
    assert again.execution["precision"] == other
    assert not any("a step, against" in e.message for e in seen if isinstance(e, Noticed))


@pytest.mark.slow
def test_a_checkpoint_goes_from_replicated_to_sharded_workers_and_back(place: Place) -> None:
    without_dropout(place)
    whole = {}
    for parallel in ("replicate", "shard"):
        project = place.project(**TWO, parallel=parallel)
        run = train(project, place.dataset(project), place.store)
        assert run.state == "complete" and run.execution["parallel"] == parallel
        whole[parallel] = weights(run.folder)
        assert run.metrics["test/accuracy"] > 0.5
    assert_close(whole["replicate"], whole["shard"], 1e-4)

    for first, then in (("replicate", "shard"), ("shard", "replicate")):
        half = place.project(**TWO, parallel=first, max_steps=15, seed=1)
        begun = train(half, place.dataset(half), place.store)
        other = {**TWO, "parallel": then, "seed": 1}
        target = place.store.run_folder(identifier(place, **other))
        shutil.copytree(Path(begun.folder) / "checkpoints", target / "checkpoints")
        project = place.project(**other)
        run = train(project, place.dataset(project), place.store)
        assert run.state == "complete" and Path(run.folder) == target
        whole[then + " taken over"] = weights(run.folder)
        shutil.rmtree(target)
        shutil.rmtree(begun.folder)
    assert_close(whole["shard taken over"], whole["replicate taken over"], 1e-4)
