"""A run is trained again from what it recorded."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.spec.errors import DataError, ModelError, StoreError, UsageError
from modelyard.spec.records import Run
from modelyard.training.reproduce import compare_weights, reproduce
from modelyard.training.train import train

Place = Any
"""conftest.Place: a project folder, its store, and commands run on it."""


def trained(place: Place, **fields: object) -> Run:
    project = place.project(epochs=1, **fields)
    run: Run = train(project, place.dataset(project), place.store)
    return run


def test_a_run_records_what_it_was_made_with(place: Place) -> None:
    (place.root / "helper.py").write_text("FACTOR = 1.0\n")
    model = place.root / "model.py"
    model.write_text("from helper import FACTOR\n" + model.read_text())
    run = trained(place, seed=7)
    assert run.code.keys() == {"model.py", "helper.py"} and run.seed == 7
    assert run.machine is not None and run.machine.cores >= 1 and run.machine.memory > 1e8
    assert run.machine.processor and run.machine.host
    assert {"modelyard", "python", "numpy", "torch"} <= run.versions.keys()
    assert run.command.split()[0] == sys.orig_argv[0]
    kept = Path(run.folder) / "code"
    assert (kept / "model.py").read_text() == model.read_text()
    assert (kept / "helper.py").read_text() == "FACTOR = 1.0\n"


def test_the_same_comes_out_bit_for_bit_and_leaves_nothing(place: Place) -> None:
    run = trained(place, workers=2)
    before = sorted(place.store.root.rglob("*"))
    found = reproduce(run, place.store, place.root)
    assert found.same and not found.different and found.tensors == 4
    assert found.largest_difference == 0 and found.largest_metric_difference == 0
    assert found.steps == (run.step, run.step) and found.notes == ()
    assert sorted(place.store.root.rglob("*")) == before


def test_a_run_that_a_budget_ended_is_repeated_as_far_as_it_went(place: Place) -> None:
    run = trained(place, max_steps=13)
    assert run.step == 13
    assert reproduce(run, place.store, place.root).same


def test_changed_code_is_named_and_the_kept_copy_serves(place: Place) -> None:
    run = trained(place)
    model = place.root / "model.py"
    model.write_text(model.read_text().replace("dropout=0.1", "dropout=0.5"))
    with pytest.raises(ModelError, match=r"model\.py changed") as caught:
        reproduce(run, place.store, place.root)
    assert "--kept-code" in caught.value.mend
    assert reproduce(run, place.store, place.root, kept_code=True).same
    model.unlink()
    with pytest.raises(ModelError, match=r"model\.py changed"):
        reproduce(run, place.store, place.root)


def test_deleted_data_is_prepared_again_and_changed_data_is_told(place: Place) -> None:
    run = trained(place)
    shutil.rmtree(place.store.dataset_folder(run.dataset))
    assert reproduce(run, place.store, place.root).same
    shutil.rmtree(place.store.dataset_folder(run.dataset))
    loader = place.root / "loader.py"
    loader.write_text(loader.read_text().replace("/ 16", "/ 15"))
    with pytest.raises(DataError, match="the data is not what"):
        reproduce(run, place.store, place.root)


def test_without_a_result_or_a_project_there_is_one_clear_error(place: Place) -> None:
    run = trained(place)
    failed = Run.from_json(run.to_json().replace(b'"complete"', b'"failed"'))
    with pytest.raises(UsageError, match="is failed"):
        reproduce(failed, place.store, place.root)
    (Path(run.folder) / "project.json").unlink()
    with pytest.raises(StoreError, match="older Modelyard"):
        reproduce(run, place.store, place.root)


def test_weights_are_compared_number_by_number() -> None:
    one = {"model.a": np.array([1.0, 2.0], np.float32), "model.b": np.zeros(3)}
    assert compare_weights(one, {k: v.copy() for k, v in one.items()}).same
    two = {**one, "model.a": np.array([1.0, 2.5], np.float32)}
    found = compare_weights(one, two)
    assert not found.same and found.different == ("model.a",)
    assert found.largest_difference == 0.5 and found.largest_in == "model.a"
    assert compare_weights(one, {"model.a": one["model.a"]}).largest_difference == float("inf")
    broken = {**one, "model.b": np.array([0, np.nan, 0])}
    assert compare_weights(one, broken).largest_difference == float("inf")
    assert not compare_weights({"model.a": np.zeros(2)}, {"model.a": -np.zeros(2)}).same


def yard(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "modelyard.cli", *words],
        cwd=place.root, capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip


def test_the_command_says_it_and_its_exit_code_too(place: Place) -> None:
    run = trained(place)
    done = yard(place, "reproduce", run.id[:9])
    assert done.returncode == 0, done.stderr
    assert "the same" in done.stdout and "4 tensors, bit-equal" in done.stdout
    record = Path(run.folder) / "run.json"
    changed = json.loads(record.read_text())
    changed["metrics"]["test/loss"] += 0.25
    record.write_text(json.dumps(changed))
    done = yard(place, "reproduce", run.id, "--json")
    body = json.loads(done.stdout)
    assert done.returncode == 1 and not body["same"]
    assert body["largest_metric_difference"] == pytest.approx(0.25)


def test_steps_are_computed_as_the_run_came_to_compute_them(place: Place) -> None:
    run = trained(place, precision="auto", micro_batch=16)
    assert run.execution["precision"] in ("float32", "bfloat16", "float16")
    assert run.execution["micro_batch"] == 16
    found = reproduce(run, place.store, place.root)
    assert found.same, found
