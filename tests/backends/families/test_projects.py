"""Built-in models as a project names them: from a table to a bundle, with two workers."""

import csv
from pathlib import Path

import numpy as np
import pytest
from tests.backends.families.problems import ratings

import modelyard
from modelyard.spec.errors import ModelError

PACKAGES = {"pytorch": "torch", "keras": "keras", "jax": "flax"}


def project(folder: Path, framework: str, args: str) -> Path:
    rows, stars = ratings().inputs, ratings().targets
    with (folder / "ratings.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "age", "item", "stars"])
        for row, value in zip(rows, stars, strict=True):
            user, item = int(np.argmax(row[:30])), int(np.argmax(row[31:]))
            writer.writerow([f"u{user}", f"{row[30]:.4f}", f"i{item}", f"{value:.4f}"])
    (folder / "yard.toml").write_text(
        '[project]\nname = "taste"\n[data]\nsource = "csv"\npath = "ratings.csv"\ntarget = "stars"\n'
        f'[task]\ntype = "regression"\n[model]\nbuild = "two-tower"\nframework = "{framework}"\n'
        f"args = {{ {args} }}\n[train]\nepochs = 20\nworkers = 2\n"
        'optimizer = { name = "adam", lr = 0.02 }\n'
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "framework", ["pytorch", "keras"]
)  # and jax when something here changes: CI has little time
def test_from_a_table_to_a_bundle(framework: str, tmp_path: Path) -> None:
    pytest.importorskip(PACKAGES[framework])
    place = project(tmp_path, framework, 'left = ["user", "age"], width = 8')
    run = modelyard.train(place)
    assert run.backend == framework
    assert run.metrics["test/r2"] > 0.7
    bundle = modelyard.export(place)
    assert bundle.parity.largest_error <= 1e-4


def test_a_column_that_is_not_there_is_told(tmp_path: Path) -> None:
    place = project(tmp_path, "pytorch", 'left = ["usr"]')
    with pytest.raises(ModelError, match="did you mean 'user'"):
        modelyard.train(place)
