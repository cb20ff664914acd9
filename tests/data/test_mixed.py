"""A row with a picture and a text as a caller sends it: what is wrong with it is told by row and column."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modelyard.data.mixed import arrays_of_rows, column_names
from modelyard.data.preprocess import describe
from modelyard.spec.errors import DataError
from modelyard.spec.signature import ImageInput, MixedInput, NumericColumn, TableInput, TextInput

SPEC = MixedInput(
    image=ImageInput(height=2, width=2, color="grey", mean=(0.0,), std=(1.0,)),
    text=TextInput(length=4, tokens="words", words=("a", "cup")),
    table=TableInput(columns=(NumericColumn(name="price", fill=0.0, mean=0.0, std=1.0),)),
    image_column="photo",
    text_column="title",
)


def picture(value: int = 7) -> bytes:
    file = io.BytesIO()
    Image.new("L", (2, 2), value).save(file, "png")
    return file.getvalue()


def row(**changed: Any) -> dict[str, Any]:
    found = {"photo": base64.b64encode(picture()).decode(), "title": "a cup", "price": 3}
    return {name: value for name, value in {**found, **changed}.items() if value is not ...}


def test_each_part_by_the_code_that_reads_it_alone() -> None:
    found = arrays_of_rows(SPEC, [row(), row(photo=picture(9), title="")])
    assert found["image"].tolist() == [[[[7, 7], [7, 7]]], [[[9, 9], [9, 9]]]]
    assert found["text"].tolist() == [[2, 3, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(found["table"], np.array([[3], [3]], np.float32))


@pytest.mark.parametrize(
    ("changed", "what", "mend"),
    [
        ({"photo": ..., "foto": ""}, "no column 'photo'; did you mean 'foto'?", "'photo', 'title', 'price'"),
        ({"photo": None}, "column 'photo': NoneType is no picture", "base64"),
        ({"photo": "%%%"}, "column 'photo': this is no base64", "data URL"),
        ({"photo": "aGFsbG8="}, "column 'photo': not a readable image", "PNG"),
        ({"title": ...}, "no column 'title'", "'photo', 'title', 'price'"),
        ({"title": 3}, "column 'title': a text is sent as a string, not as int", '""'),
        ({"price": ...}, "no column 'price'", "give every column"),
        ({"price": "cheap"}, "column 'price'", "a number"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_by_its_column(
    changed: dict[str, Any], what: str, mend: str
) -> None:
    for rows, where in (([row(**changed)], ""), ([row(), row(**changed)], "row 1: ")):
        with pytest.raises(DataError) as caught:
            arrays_of_rows(SPEC, rows)
        assert caught.value.what.startswith(where) and what in caught.value.what
        assert mend in str(caught.value.mend)


def test_a_row_is_an_object() -> None:
    with pytest.raises(DataError, match="not list"):
        arrays_of_rows(SPEC, [[1, 2, 3]])


def test_callers_are_told_all_columns() -> None:
    about = describe(SPEC)
    assert about["schema"]["required"] == ["photo", "title", "price"] == column_names(SPEC)
    assert about["schema"]["properties"]["photo"]["contentEncoding"] == "base64"
    assert set(about["example"]) == {"photo", "title", "price"}
