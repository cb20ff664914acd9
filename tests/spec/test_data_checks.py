"""Samples of several parts in the project file: what does not fit together is told before anything is read."""

from pathlib import Path

import pytest

from modelyard.spec.errors import ProjectError
from modelyard.spec.read import read_project

PROJECT = """
[project]
name = "goods"
[data]
source = "csv"
path = "goods"
image = "photo"
text = "title"
[model]
build = "fusion"
"""


def told(tmp_path: Path, **data: object) -> str:
    (tmp_path / "goods").mkdir(exist_ok=True)
    (tmp_path / "yard.toml").write_text(PROJECT)
    with pytest.raises(ProjectError) as caught:
        read_project(
            tmp_path, {f"data.{field}": value for field, value in data.items()}, environment={}
        )
    assert len(caught.value.mistakes) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"source": "images"}, ("data.image", "needs a table, which 'images' is not", "'csv', 'jsonl'")),
        ({"source": "npz", "image": "", "fuse": True}, ("data.fuse", "needs a table", "'parquet'")),
        ({"image": "", "text": "", "fuse": True}, ("data.fuse", "has no text to fuse", "data.text")),
        ({"text": "photo"}, ("data.text", "'photo' is the column of pictures already", "another column")),
        ({"target": "photo"}, ("data.image", "'photo' is the target", "an input")),
        ({"target": "title"}, ("data.text", "'title' is the target", "an input")),
        ({"keep": "files"}, ("data.keep", "pictures that are a whole sample only", '"pixels"')),
    ],
)  # fmt: skip
def test_one_clear_mistake(tmp_path: Path, data: dict[str, object], words: tuple[str, ...]) -> None:
    text = told(tmp_path, **data)
    assert all(word in text for word in words), text


def test_what_fits_is_read(tmp_path: Path) -> None:
    (tmp_path / "goods").mkdir()
    (tmp_path / "yard.toml").write_text(PROJECT)
    assert read_project(tmp_path, environment={}).data.mixed
    alone = read_project(tmp_path, {"data.image": ""}, environment={})
    assert not alone.data.mixed, "a text by itself is the whole input"
