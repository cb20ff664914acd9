"""Small real projects: pictures, tables and arrays written to disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelyard.spec.project import Project
from modelyard.store import Store, open_store

MakeProject = Callable[..., Project]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


@pytest.fixture
def project(tmp_path: Path) -> MakeProject:
    """``project(source="csv", path="data.csv", task="regression", …)`` in ``tmp_path``."""

    def make(*, task: str = "classification", loss: str = "auto", **data: object) -> Project:
        return Project.model_validate(
            {
                "project": {"name": "test"},
                "data": data,
                "task": {"type": task, "loss": loss},
                "model": {"build": "mlp"},
                "root": tmp_path,
            }
        )

    return make


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """``pictures/{cat,dog}``: 12 different images each, of several sizes."""
    random = np.random.default_rng(0)
    for label, low in (("cat", 0), ("dog", 100)):
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True)
        for number in range(12):
            shape = (9 + number, 14 - number // 2, 3)
            pixels = random.integers(low, low + 120, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "pictures"


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """``people.csv``: 60 rows with all kinds of columns and some gaps."""
    lines = ["age,smoker,town,height,ill"]
    for row in range(60):
        age = "" if row % 20 == 3 else str(20 + row)
        town = "NA" if row % 15 == 4 else ("Jena", "Gera", "Weimar")[row % 3]
        lines.append(
            f"{age},{('yes', 'no')[row % 2]},{town},{150 + row / 8},{('healthy', 'ill')[row % 4 == 0]}"
        )
    path = tmp_path / "people.csv"
    path.write_text("\n".join(lines) + "\n")
    return path
