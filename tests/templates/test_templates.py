"""`yard new`: every template is a whole project with real data, written whole or not at all."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelyard import templates
from modelyard.spec.errors import UsageError
from modelyard.spec.project import Project
from modelyard.spec.read import read_project

BUILT_IN = sorted(templates.BUILT_IN)


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each built-in template, written once."""
    folder = tmp_path_factory.mktemp("projects")
    for name in BUILT_IN:
        templates.create(name, folder / name, f"my-{name}")
    return {name: folder / name for name in BUILT_IN}


def read(folder: Path) -> Project:
    return read_project(folder, environment={})


@pytest.mark.parametrize("name", BUILT_IN)
def test_project_file_is_valid_and_carries_the_name(projects: dict[str, Path], name: str) -> None:
    assert read(projects[name]).name == f"my-{name}"


@pytest.mark.parametrize("name", BUILT_IN)
def test_no_mark_is_left_in_any_text(projects: dict[str, Path], name: str) -> None:
    texts = [p for p in projects[name].rglob("*") if p.suffix in {".md", ".toml", ".py", ".json"}]
    assert len(texts) >= 3
    assert [p.name for p in texts if templates.MARK in p.read_text(encoding="utf-8")] == []
    assert (projects[name] / ".gitignore").read_text().count(".yard/") == 1


@pytest.mark.parametrize("name", BUILT_IN)
def test_model_fits_the_shapes_it_is_given(projects: dict[str, Path], name: str) -> None:
    """Run apart, so that three files called model.py do not meet."""
    shapes = (
        [((1, 16, 16), 10), ((3, 32, 32), 2), ((3, 37, 61), 5), ((1, 8, 8), 3), ((3, 128, 96), 4)]
        if name == "image-classification"
        else [((30,), 2), ((1,), 1), ((700,), 12)]
    )
    code = f"""
import torch, model
torch.set_num_threads(1)
for shape, outputs in {shapes!r}:
    for mode in ("train", "eval"):
        net = getattr(model.build(shape, outputs), mode)()
        answer = net(torch.rand(3, *shape))
        assert answer.shape == (3, outputs), (shape, answer.shape)
        assert sum(p.numel() for p in net.parameters()) < 2_000_000
        answer.sum().backward()
    assert torch.equal(net(torch.ones(1, *shape)), net(torch.ones(1, *shape)))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=projects[name],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_digits_are_grey_pictures_in_one_folder_per_class(projects: dict[str, Path]) -> None:
    data = projects["image-classification"] / "data"
    assert sorted(p.name for p in data.iterdir()) == list("0123456789")
    files = sorted(data.rglob("*.png"))
    assert len(files) == 1797
    brightest = 0
    for file in files[::50]:
        with Image.open(file) as picture:
            assert (picture.mode, picture.size) == ("L", (8, 8))
            brightest = max(brightest, int(np.asarray(picture).max()))
    assert brightest == 255


def test_digits_train_with_two_workers_and_serve_from_two_replicas(
    projects: dict[str, Path],
) -> None:
    project = read(projects["image-classification"])
    assert (project.train.workers, project.deploy.replicas) == (2, 2)
    assert (project.data.size, project.data.color) == ((16, 16), "grey")


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [("tabular-classification", 569, 31), ("tabular-regression", 442, 11)],
)
def test_table_has_its_target_last_and_a_sample_without_it(
    projects: dict[str, Path], name: str, rows: int, columns: int
) -> None:
    with (projects[name] / "data.csv").open(newline="") as file:
        header, *body = csv.reader(file)
    target = read(projects[name]).data.target
    assert header[-1] == target
    assert all(column.replace("_", "").isalpha() for column in header), "words, no spaces"
    assert (len(body), {len(row) for row in body}) == (rows, {columns})
    sample = json.loads((projects[name] / "sample.json").read_text())
    assert list(sample) == header[:-1]
    assert [str(value) for value in sample.values()] == body[0][:-1]


def test_diagnoses_are_words_as_often_as_the_set_says(projects: dict[str, Path]) -> None:
    """The description of the set: 212 malignant, 357 benign."""
    with (projects["tabular-classification"] / "data.csv").open(newline="") as file:
        counts = Counter(row["diagnosis"] for row in csv.DictReader(file))
    assert counts == {"malignant": 212, "benign": 357}


@pytest.mark.parametrize("name", ["tabular-classification", "tabular-regression"])
def test_medical_data_says_that_it_is_no_medical_device(
    projects: dict[str, Path], name: str
) -> None:
    assert "not a medical device" in (projects[name] / "README.md").read_text()
    assert "not a medical device" in read(projects[name]).project.description


def test_create_returns_the_files_and_leaves_nothing_beside_them(tmp_path: Path) -> None:
    files = templates.create("tabular-regression", tmp_path / "deep" / "er", "er")
    names = [".gitignore", "README.md", "data.csv", "model.py", "sample.json", "yard.toml"]
    assert [file.relative_to(tmp_path / "deep" / "er").as_posix() for file in files] == names
    assert os.listdir(tmp_path / "deep") == ["er"]


def test_an_empty_folder_is_filled_and_stays_the_same_folder(tmp_path: Path) -> None:
    """`yard new .` in a folder just made: the shell stands in it, so it must not be replaced."""
    folder = tmp_path / "mine"
    folder.mkdir()
    before = folder.stat().st_ino
    templates.create("tabular-regression", folder, "mine")
    assert folder.stat().st_ino == before
    assert read(folder).name == "mine"
    assert os.listdir(tmp_path) == ["mine"]


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        templates.create("tabular-regression", tmp_path, "mine")
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "digits").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        templates.create("tabular-regression", tmp_path / "digits", "digits")
    with pytest.raises(UsageError, match="cannot write the project"):
        templates.create("tabular-regression", tmp_path / "digits" / "inner", "digits")


def test_an_unknown_template_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'image-classification'") as caught:
        templates.create("image-clasification", tmp_path / "digits", "digits")
    assert "tabular-regression" in caught.value.mend
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "hint"), [("My Digits!", "my-digits"), ("a_b", "a-b"), ("x" * 70, "x" * 63)]
)
def test_a_name_that_cannot_be_a_host_name_is_refused(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean '{hint}'"):
        templates.create("tabular-regression", tmp_path / "new", name)
    assert os.listdir(tmp_path) == []


def test_a_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that dies in the middle: here a third-party one that writes a file and fails."""
    (tmp_path / "halfway.py").write_text(
        "def write(folder, name):\n    (folder / 'half').write_text('x')\n    raise RuntimeError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plugin = templates.Plugin("halfway:write", "dies")
    monkeypatch.setitem(templates.BUILT_IN, "halfway", plugin)
    place = tmp_path / "place"
    with pytest.raises(RuntimeError):
        templates.create("halfway", place / "new", "new")
    assert os.listdir(place) == []


def test_without_scikit_learn_the_pip_line_is_named(tmp_path: Path) -> None:
    """A fresh process whose scikit-learn cannot be found."""
    code = """
import sys
sys.modules["sklearn"] = sys.modules["sklearn.datasets"] = None
from pathlib import Path
from modelyard.spec.errors import MissingExtraError
from modelyard.templates import create
try:
    create("tabular-regression", Path("new"), "new")
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert "pip install 'modelyard[templates]'" in done.stdout, done.stderr
    assert os.listdir(tmp_path) == []
