"""NumPy's files: archives, shards and folders of arrays; what is damaged or pickled is refused."""

from pathlib import Path

import numpy as np
import pytest

from modelyard.data.dataset import open_split, prepare
from modelyard.data.sources import open_source
from modelyard.data.sources.base import Source
from modelyard.spec.errors import DataError

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(30, 4, 2)), np.arange(30) % 3


@pytest.fixture
def opened(project):
    def make(path: str, **data: object) -> Source:
        return open_source(project(**{"source": "npz", "path": path, **data}))

    return make


def test_an_archive(opened, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=X, label=Y, note=np.ones(30))
    source = opened("a.npz")
    assert source.schema().shape == (4, 2) and source.targets().tolist() == Y.tolist()
    np.testing.assert_array_equal(source.rows(7, 19).values, X[7:19].astype(np.float32))
    assert source.name(7) == "row 7"
    assert source.findings()[0].examples == ("note",)


def test_shards_and_a_folder_of_arrays(opened, tmp_path: Path) -> None:
    for name, part in (("s-2", slice(0, 12)), ("s-10", slice(12, 30))):
        (tmp_path / "shards").mkdir(exist_ok=True)
        np.savez(tmp_path / "shards" / f"{name}.npz", x=X[part], y=Y[part])
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "x.npy", X)
    np.save(tmp_path / "arrays" / "y.npy", Y)
    for path in ("shards", "arrays"):
        source = opened(path, target="y")
        assert len(source) == 30 and source.targets().tolist() == Y.tolist()
        np.testing.assert_array_equal(source.rows(3, 25).values, X[3:25].astype(np.float32))
    assert opened("shards", target="y").name(13) == "s-10.npz, row 1"


def test_columns(opened, tmp_path: Path, project, store) -> None:
    np.savez(tmp_path / "a.npz", age=np.arange(30.0), town=np.array(["a", "b", "a"] * 10), label=Y)
    source = opened("a.npz")
    assert {c.name: c.kind for c in source.schema().columns} == {
        "age": "numeric",
        "town": "categorical",
    }
    dataset = prepare(project(source="npz", path="a.npz"), store)
    assert open_split(dataset, "train").inputs.shape == (30, 3)


def test_rows_of_a_wrong_shape_are_counted_and_named(
    opened, tmp_path: Path, project, store
) -> None:
    for number in range(4):
        shape = (10, 4, 3) if number == 2 else (10, 4, 2)
        np.savez(tmp_path / f"{number}.npz", x=RANDOM.normal(size=shape), label=Y[:10])
    (tmp_path / "data").mkdir()
    for number in range(4):
        (tmp_path / f"{number}.npz").rename(tmp_path / "data" / f"{number}.npz")
    with pytest.raises(
        DataError,
        match=r"10 of 40 samples cannot be read: 2\.npz, row 0 to 2\.npz, row 9: samples of shape \[4, 3\]",
    ):
        prepare(project(source="npz", path="data"), store)
    dataset = prepare(project(source="npz", path="data", max_unreadable=0.25), store)
    assert dataset.samples == 30


def test_a_damaged_archive(opened, tmp_path: Path, project, store) -> None:
    large = RANDOM.normal(size=(10, 400, 2))
    (tmp_path / "data").mkdir()
    for number in range(4):
        np.savez(tmp_path / "data" / f"{number}.npz", x=large[:10] + number, label=Y[:10])
    file = tmp_path / "data" / "1.npz"
    content = bytearray(file.read_bytes())
    at = content.index((large[:10] + 1).tobytes()[9000:9020])
    content[at] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(
        DataError,
        match=r"10 of 40 samples cannot be read: 1\.npz, row 0.*: the file is damaged: Bad CRC-32",
    ):
        prepare(project(source="npz", path="data"), store)
    assert prepare(project(source="npz", path="data", max_unreadable=0.25), store).samples == 30
    file.write_bytes(content[:500])
    with pytest.raises(DataError, match=r"1\.npz cannot be read: .*") as caught:
        opened("data").schema()
    assert "not known" in caught.value.mend


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X, "y": Y}, r"no array 'label' for the target"),
        ({"x": X, "labels": Y}, r"did you mean 'labels'"),
        ({"x": X, "label": Y[:9]}, r"'x' has shape \[30, 4, 2\], the target 'label' 9 rows"),
        ({"x": X, "z": X, "label": Y}, r"several arrays that could be the inputs: x, z"),
        ({"label": Y}, r"no array beside the target"),
        ({"x": np.array([[{}]] * 30), "label": Y}, r"would have to be unpickled"),
        ({"x": np.array([["a", "b"]] * 30), "label": Y}, r"which is not numbers"),
    ],
)
def test_what_is_wrong_is_explained(
    arrays: dict[str, np.ndarray], words: str, opened, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=words) as caught:
        source = opened("a.npz")
        source.schema()
        source.rows(0, 3)
    assert caught.value.mend
