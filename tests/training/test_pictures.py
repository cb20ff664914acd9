"""Pictures of data and results."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modelyard.data.dataset import prepare
from modelyard.spec.read import read_project
from modelyard.store import open_store
from modelyard.training.pictures import confusion_picture, png, training_samples


def test_the_confusion_matrix_is_dark_where_the_counts_are() -> None:
    picture = confusion_picture([[9, 1], [0, 10]])
    pixels = np.asarray(picture)
    side = picture.height // 2
    assert pixels[1, 1].sum() < 300 and pixels[side + 1, 1].sum() > 700
    assert confusion_picture([[1] * 300] * 300).size == (900, 900)
    with Image.open(io.BytesIO(png(picture))) as read:
        assert read.size == picture.size


def test_training_samples_are_shown_as_they_are_stored(tmp_path: Path) -> None:
    for color in ("red", "blue"):
        folder = tmp_path / "data" / color
        folder.mkdir(parents=True)
        for number in range(6):
            shade = Image.new("RGB", (8, 8), color)
            shade.putpixel((0, 0), (number, number, number))  # no two are equal
            shade.save(folder / f"{number}.png")
    (tmp_path / "yard.toml").write_text(
        '[project]\nname = "colors"\n[data]\nsource = "images"\npath = "data"\nsize = [8, 8]\n'
        '[model]\nbuild = "cnn-small"\n'
    )
    project = read_project(tmp_path)
    sheet = training_samples(prepare(project, open_store(project.store_folder)))
    assert sheet is not None
    found = {color for _, color in sheet.getcolors(100_000) or []}
    assert {(255, 0, 0), (0, 0, 255)} <= found


def test_what_is_no_picture_has_none(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert training_samples(place.dataset(place.project())) is None
