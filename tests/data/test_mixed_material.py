"""Pictures, texts and columns prepared together: the service reads a row as preparation did, bit by bit."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.data.mixed_rows import write_goods, write_rows

from modelyard.data.dataset import dataset_id, natural_samples, open_split, prepare
from modelyard.data.preprocess import encode, store_form
from modelyard.data.profile import Profile
from modelyard.spec.errors import DataError
from modelyard.spec.project import Project
from modelyard.spec.signature import MixedInput
from modelyard.store import Store
from modelyard.tasks.parts import finished_parts, stored_parts, unpack

MakeProject = Callable[..., Project]
GOODS = {"path": "goods", "image": "photo", "text": "title", "size": (12, 12), "length": 8}


@pytest.fixture(params=["csv", "jsonl", "parquet"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    return str(request.param)


def test_every_format_gives_the_same_rows(
    tmp_path: Path, project: MakeProject, store: Store, kind: str
) -> None:
    rows = write_goods(tmp_path / "goods", kind=kind)
    dataset = prepare(project(source=kind, **GOODS), store)
    spec = dataset.input
    assert isinstance(spec, MixedInput) and list(spec.parts) == ["image", "text", "table"]
    assert not (Path(dataset.folder) / "parts").exists()
    split = open_split(dataset, "train")
    parts, row = unpack(stored_parts(spec), np.asarray(split.inputs)), rows[7]
    assert parts["image"].shape == (60, 3, 12, 12) and parts["image"].dtype == np.uint8
    content = (tmp_path / "goods" / row["photo"]).read_bytes()
    natural = {**row, "photo": base64.b64encode(content).decode()}
    np.testing.assert_array_equal(store_form(spec, [natural]), split.inputs[7:8])
    np.testing.assert_array_equal(
        store_form(spec, [{**natural, "photo": content}]), split.inputs[7:8]
    )
    url = f"data:image/png;base64,{natural['photo']}"
    np.testing.assert_array_equal(store_form(spec, [{**natural, "photo": url}]), split.inputs[7:8])


def test_samples_are_kept_as_a_caller_would_send_them(
    tmp_path: Path, project: MakeProject, store: Store
) -> None:
    write_goods(tmp_path / "goods")
    dataset = prepare(project(source="csv", **GOODS), store)
    split = open_split(dataset, "test")
    whole, _ = split.batch(np.arange(len(split)))
    for _, item, _ in natural_samples(dataset):
        assert set(item) == {"photo", "title", "price", "size"}
        assert (encode(dataset.input, [item]) == whole).all(axis=1).any()


def test_model_form_is_each_parts_own(tmp_path: Path, project: MakeProject, store: Store) -> None:
    write_goods(tmp_path / "goods")
    dataset = prepare(project(source="csv", **GOODS), store)
    spec, split = dataset.input, open_split(dataset, "train")
    assert isinstance(spec, MixedInput) and spec.image and spec.text
    whole, _ = split.batch(np.arange(len(split)))
    found = unpack(finished_parts(spec), whole)
    assert abs(found["image"].mean()) < 1e-3 and abs(found["image"].std() - 1) < 1e-2
    assert found["text"].dtype == np.int64 and found["text"].max() < spec.text.vocabulary
    assert np.abs(found["table"][:, 0].mean()) < 1e-3


def test_profiles_have_the_columns_names(
    tmp_path: Path, project: MakeProject, store: Store
) -> None:
    write_goods(tmp_path / "goods")
    dataset = prepare(project(source="csv", **GOODS), store)
    content = (Path(dataset.folder) / "profile.json").read_bytes()
    names = [feature.name for feature in msgspec.json.decode(content, type=Profile).features]
    assert names == ["photo", "title tokens", "title words", "price", "size"]


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ({"image": "photo"}, ["image", "table"]),
        ({"text": "title", "fuse": True}, ["text", "table"]),
        ({"image": "photo", "text": "title", "columns": {"price": "ignore", "size": "ignore"}}, ["image", "text"]),
    ],
)  # fmt: skip
def test_two_parts_suffice(
    tmp_path: Path, project: MakeProject, store: Store, data: dict[str, Any], parts: list[str]
) -> None:
    write_goods(tmp_path / "goods")
    if "text" not in data:
        data = {**data, "columns": {"title": "ignore"}}
    if "image" not in data:
        data = {**data, "columns": {"photo": "ignore"}}
    found = prepare(project(source="csv", path="goods", size=(12, 12), **data), store).input
    assert isinstance(found, MixedInput) and list(found.parts) == parts


def test_a_picture_that_changes_is_other_data(
    tmp_path: Path, project: MakeProject, store: Store
) -> None:
    write_goods(tmp_path / "goods")
    asked = project(source="csv", **GOODS)
    before = dataset_id(asked, store)
    (tmp_path / "goods/photos/3.png").write_bytes((tmp_path / "goods/photos/4.png").read_bytes())
    assert dataset_id(asked, store) != before


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("photos/61.png", "there is no 'photos/61.png' in"),
        ("../secret.png", "'../secret.png' is not in"),
        ("/etc/hostname", "'/etc/hostname' is not in"),
        ("photos/../../secret.png", "is not in"),
        ("", "it names no picture"),
        ("rows.csv", "not a readable image"),
    ],
)
def test_a_picture_that_cannot_be_read_is_counted_and_named(
    tmp_path: Path, project: MakeProject, store: Store, cell: str, why: str
) -> None:
    rows = write_goods(tmp_path / "goods")
    (tmp_path / "secret.png").write_bytes((tmp_path / "goods/photos/1.png").read_bytes())
    rows[5]["photo"] = cell
    write_rows(tmp_path / "goods/rows.csv", rows)
    asked = project(source="csv", **GOODS)
    with pytest.raises(DataError) as caught:
        prepare(asked, store)
    assert "1 of 60 samples cannot be read: rows.csv, line 7: " in caught.value.what
    assert why in caught.value.what and "data.max_unreadable" in str(caught.value.mend)
    dataset = prepare(project(source="csv", max_unreadable=0.1, **GOODS), store)
    assert dataset.samples == 59
    assert any("line 7" in "".join(finding.examples) for finding in dataset.quality)


@pytest.mark.parametrize(
    ("data", "what", "mend"),
    [
        ({"image": "foto"}, "data.image names 'foto'", "its columns are"),
        ({"text": "titel"}, "did you mean 'title'?", "its columns are"),
        ({"path": "goods/rows.csv"}, "is a file; with data.image the folder is named", "name the folder"),
        ({"columns": {"price": "ignore", "size": "ignore"}, "text": ""}, "beside the picture no column is left", "[data.columns]"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_clear_error(
    tmp_path: Path, project: MakeProject, store: Store, data: dict[str, Any], what: str, mend: str
) -> None:
    rows = write_goods(tmp_path / "goods")
    if data.get("text") == "":
        write_rows(
            tmp_path / "goods/rows.csv",
            [{name: row[name] for name in row if name != "title"} for row in rows],
        )
    with pytest.raises(DataError) as caught:
        prepare(project(source="csv", **{**GOODS, **data}), store)
    assert what in caught.value.what and mend in str(caught.value.mend)
