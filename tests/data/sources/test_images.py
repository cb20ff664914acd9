"""A folder of images: labels from folder names, mistakes of the layout named."""

import os
from pathlib import Path

import pytest

from modelyard.data.sources import open_source
from modelyard.data.sources.base import Source, natural_order
from modelyard.spec.errors import DataError


@pytest.fixture
def source(project, pictures: Path) -> Source:
    return open_source(project(source="images", path="pictures", size=[4, 4]))


def test_the_first_folder_is_the_label_however_deep_the_file_lies(
    source: Source, pictures: Path
) -> None:
    deep = pictures / "cat" / "2024" / "may"
    deep.mkdir(parents=True)
    (pictures / "cat" / "0.png").rename(deep / "0.png")
    labels = {source.name(row): label for row, label in enumerate(source.targets())}
    assert labels["cat/2024/may/0.png"] == "cat" and labels["dog/0.png"] == "dog"
    assert len(source) == 24


def test_hidden_files_and_those_of_the_system_are_passed_over(
    source: Source, pictures: Path
) -> None:
    (pictures / "cat" / ".DS_Store").write_bytes(b"x")
    (pictures / "dog" / "Thumbs.db").write_bytes(b"x")
    (pictures / ".git").mkdir()
    assert len(source) == 24 and source.findings() == ()


def test_loose_files_are_reported_and_not_used(source: Source, pictures: Path) -> None:
    (pictures / "notes.txt").write_text("hello")
    assert len(source) == 24
    assert source.findings()[0].examples == ("notes.txt",)


def test_every_unreadable_file_is_marked_with_its_reason(source: Source, pictures: Path) -> None:
    (pictures / "cat" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    os.symlink("nowhere", pictures / "dog" / "gone.png")
    unreadable = source.rows(0, len(source)).unreadable
    reasons = {source.name(row): why for row, why in unreadable.items()}
    assert set(reasons) == {"cat/3.png", "dog/gone.png"}
    assert "not a readable image" in reasons["cat/3.png"]
    assert "No such file" in reasons["dog/gone.png"]


def test_an_empty_class_folder_is_named(source: Source, pictures: Path) -> None:
    (pictures / "bird").mkdir()
    with pytest.raises(DataError, match="empty class folder: 'bird'"):
        source.files()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "no folder at"),
        (lambda folder: folder.write_text("x"), "is a file; the source 'images' needs a folder"),
        (lambda folder: folder.mkdir(), "no class folders"),
        (lambda folder: [(folder / n).mkdir(parents=True) for n in ("train", "test")], "splits"),
    ],
)
def test_a_wrong_layout_is_explained(project, tmp_path: Path, make, words: str) -> None:
    make(tmp_path / "images")
    with pytest.raises(DataError, match=words) as caught:
        open_source(project(source="images", path="images")).files()
    assert caught.value.mend


def test_a_path_must_be_given(project) -> None:
    with pytest.raises(DataError, match=r"data\.path is not set"):
        open_source(project(source="images")).files()


def test_numbers_in_names_are_ordered_as_numbers() -> None:
    names = ["10", "2", "x10", "x2", "x", "1b", "1a", "02"]
    assert sorted(names, key=natural_order) == ["1a", "1b", "02", "2", "10", "x", "x2", "x10"]
