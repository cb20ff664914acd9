"""Arrays from the user's Python: called, checked, and its errors shown with their place."""

from pathlib import Path

import numpy as np
import pytest

from modelyard.data.sources import open_source
from modelyard.data.sources.base import Source
from modelyard.spec.errors import DataError


@pytest.fixture
def load(project, tmp_path: Path):
    """``load("return …")``: a source whose function has this body."""

    def opened(body: str, **data: object) -> Source:
        (tmp_path / "mine.py").write_text(f"import numpy as np\ndef load():\n    {body}\n")
        return open_source(project(source="mine:load", **data))

    return opened


@pytest.mark.parametrize(
    "body",
    [
        "return np.ones((4, 3)), [0, 1, 0, 1]",
        "return {'inputs': [[1, 1, 1]] * 4, 'targets': np.array([[0], [1], [0], [1]])}",
    ],
)
def test_tensors(load, body: str) -> None:
    source = load(body)
    assert source.schema().kind == "tensor" and source.schema().shape == (3,)
    assert source.rows(1, 3).values.tolist() == [[1, 1, 1]] * 2
    assert source.targets().tolist() == [0, 1, 0, 1]


def test_columns(load) -> None:
    source = load(
        "return {'age': [1, 2, None], 'town': np.array(['a', 'b', 'a']), 'ok': [True, False, None], 'ill': ['y', 'n', None]}",
        target="ill",
    )
    assert {c.name: c.kind for c in source.schema().columns} == {
        "age": "numeric",
        "town": "categorical",
        "ok": "boolean",
    }
    assert source.targets().tolist() == ["y", "n", None]
    assert source.natural(1)[1] == b'{"age": 2, "town": "b", "ok": false}'


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 1 / 0", r"raised ZeroDivisionError: division by zero \(mine.py, line 3\)"),
        ("return 7", "returned int"),
        ("return np.ones((4, 3)), [0, 1]", "4 inputs and 2 targets"),
        ("return np.ones(4), [0] * 4", r"inputs have shape \[4\]"),
        ("return [[1], [2, 3]], [0, 1]", "ragged"),
        ("return np.array([['a'], ['b']]), [0, 1]", "not numbers"),
        ("return np.ones((2, 2)), np.ones((2, 2))", "targets have shape"),
        ("return np.ones((2, 2)), [{}, {}]", "neither text nor a number"),
        ("return {'a': [1, 2]}", "no target column 'label'"),
        ("return {'a': [1, 2, 3], 'label': [1, 2]}", "column 'a' has 3 values"),
        ("return {'a': [1, 2, 3, 4, 5, 'x'], 'label': [1, 2] * 3}", "row 5 'x'"),
    ],
)
def test_what_it_returns_is_checked(load, body: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load(body).schema()


def test_a_number_that_is_not_finite_makes_the_row_unreadable(load) -> None:
    rows = load("return np.array([[1.0], [np.nan], [1e300]]), [0, 1, 0]").rows(0, 3)
    assert list(rows.unreadable) == [1, 2] and rows.values.tolist() == [[1], [0], [0]]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere:load", "no module 'nowhere'"),
        ("mine:laod", "no function 'laod'; did you mean 'load'"),
    ],
)
def test_a_wrong_name_is_explained(project, load, source: str, words: str) -> None:
    load("return 1")
    with pytest.raises(DataError, match=words):
        opened = open_source(project(source=source))
        opened.code()
        opened.schema()


def test_a_module_that_does_not_import(project, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(DataError, match="No module named 'not_installed_anywhere'"):
        open_source(project(source="mine:load")).schema()
    (tmp_path / "mine.py").write_text("def load(:\n")
    with pytest.raises(DataError, match=r"mine.py, line 1: not valid Python"):
        open_source(project(source="mine:load")).code()


def test_the_code_is_read_anew(load) -> None:
    assert len(load("return np.ones((2, 1)), [0, 1]")) == 2
    assert len(load("return np.ones((3, 1)), [0, 1, 1]")) == 3


def test_files_are_those_under_the_path(load, tmp_path: Path) -> None:
    (tmp_path / "raw" / "deep").mkdir(parents=True)
    (tmp_path / "raw" / "deep" / "x.npy").write_bytes(b"1")
    source = load("return np.load('raw/deep/x.npy')", path="raw")
    assert [file.name for file in source.files()] == ["x.npy"]


def test_pickled_objects_are_not_needed(load) -> None:
    source = load("return np.array([[1], [2]], dtype=object), [0, 1]")
    with pytest.raises(DataError, match="type object"):
        source.schema()


def test_a_memory_map_stays_one(load, tmp_path: Path) -> None:
    np.save(tmp_path / "big.npy", np.ones((5, 2), dtype=np.float32))
    source = load("return np.load('big.npy', mmap_mode='r'), [0, 1, 0, 1, 0]")
    source.schema()
    assert isinstance(source._content[0], np.memmap)
