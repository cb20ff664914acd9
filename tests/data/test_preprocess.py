"""Natural input to model form: the same bits before training and in the service, clear refusals."""

import io
import json
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from modelyard.data.cells import number, truth, word
from modelyard.data.preprocess import describe, encode, finish, store_form
from modelyard.spec.errors import DataError
from modelyard.spec.signature import (
    BooleanColumn,
    CategoricalColumn,
    ImageInput,
    NumericColumn,
    TableInput,
    TensorInput,
)

TABLE = TableInput(
    columns=(
        NumericColumn(name="age", fill=40.0, mean=50.0, std=10.0, indicator=True),
        NumericColumn(name="height", fill=170.0, mean=160.0, std=20.0),
        CategoricalColumn(name="town", categories=("Gera", "Jena", "3")),
        BooleanColumn(name="smoker", fill=0.25),
    )
)
ROW = {"age": 60, "height": 180.0, "town": "Jena", "smoker": True}
IMAGE = ImageInput(height=5, width=4, color="rgb", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def features(**changes: object) -> list[float]:
    return encode(TABLE, [{**ROW, **changes}])[0].tolist()


def test_a_row_becomes_scaled_numbers_one_hot_words_and_truths() -> None:
    assert features() == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("gap", [None, "", " ", "NA", "n/a", "nan", "NULL", "None", "?", math.nan])
def test_what_is_missing_is_filled_and_marked(gap: object) -> None:
    assert features(age=gap)[:2] == [-1.0, 1.0]
    assert features(height=gap)[2] == 0.5
    assert features(town=gap)[3:6] == [0.0, 0.0, 0.0]
    assert features(smoker=gap)[6] == 0.25


@pytest.mark.parametrize("value", ["60", " 60.0 ", "6e1", 60, np.int8(60), np.float32(60)])
def test_a_number_may_be_written_as_text(value: object) -> None:
    assert features(age=value) == features()


@pytest.mark.parametrize("value", [True, "true", "YES", "1", 1, 1.0, "t", "on", np.True_])
def test_a_truth_may_be_written_in_many_ways(value: object) -> None:
    assert features(smoker=value) == features()


@pytest.mark.parametrize("value", ["3", 3, 3.0])
def test_a_word_may_come_as_a_number(value: object) -> None:
    assert features(town=value)[3:6] == [0.0, 0.0, 1.0]


def test_an_unseen_word_is_all_zeros() -> None:
    assert features(town="Rome")[3:6] == [0.0, 0.0, 0.0]


def test_columns_that_the_model_does_not_use_are_ignored() -> None:
    assert features(id=7, ill="yes") == features()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"age": "old"}, ["'age'", "'old'", "number"]),
        ({"age": True}, ["'age'", "True"]),
        ({"age": "1_000"}, ["'age'", "1_000"]),
        ({"age": "inf"}, ["'age'", "finite"]),
        ({"age": 10**400}, ["'age'", "finite"]),
        ({"age": 1e300}, ["'age'", "too large"]),
        ({"age": [1]}, ["'age'", "[1]"]),
        ({"smoker": "maybe"}, ["'smoker'", "'maybe'", "true or false"]),
        ({"smoker": 2}, ["'smoker'", "2"]),
        ({"town": {"a": 1}}, ["'town'", "word"]),
    ],
)
def test_a_wrong_cell_is_named(changes: dict[str, object], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        features(**changes)
    assert all(text in str(caught.value) for text in words), str(caught.value)


def test_an_absent_column_is_named_with_the_one_that_was_meant() -> None:
    row = {("Age " if name == "age" else name): value for name, value in ROW.items()}
    with pytest.raises(DataError, match="no column 'age'; did you mean it by 'Age '"):
        encode(TABLE, [row])
    with pytest.raises(DataError, match="row 1: no column 'age'"):
        encode(TABLE, [ROW, row])


def test_a_row_that_is_no_object_is_refused() -> None:
    with pytest.raises(DataError, match="not list"):
        encode(TABLE, [[1, 2, 3]])


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "age": st.none() | st.floats(-1e6, 1e6) | st.integers(-99, 99).map(str),
                "height": st.just(math.nan) | st.floats(-1e30, 1e30),
                "town": st.none() | st.text(),
                "smoker": st.none() | st.booleans(),
            }
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_row_is_the_same_alone_and_among_others(rows: list[dict[str, object]]) -> None:
    together = encode(TABLE, rows)
    alone = np.concatenate([encode(TABLE, [row]) for row in rows])
    assert together.tobytes() == alone.tobytes()
    assert together.dtype == np.float32 and np.isfinite(together).all()


@given(st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.lists(st.text()))
def test_a_cell_is_taken_or_refused_with_a_reason(value: object) -> None:
    for parse in (number, truth, word):
        try:
            parsed = parse(value)
        except ValueError as error:
            assert str(error)
        else:
            assert parsed is None or isinstance(parsed, str) or not math.isinf(parsed)


# --- images and tensors ------------------------------------------------------------------------


@given(arrays(np.uint8, (5, 4, 3)))
def test_an_image_is_normalised_by_channel(pixels: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (IMAGE.mean, IMAGE.std))
    expected = (pixels.transpose(2, 0, 1) / 255 - mean) / std
    np.testing.assert_allclose(encode(IMAGE, [buffer.getvalue()])[0], expected, atol=1e-6)


@given(arrays(np.uint8, (3, 3, 5, 4)))
def test_finish_gives_the_same_bits_for_one_and_for_many(stored: np.ndarray) -> None:
    together = finish(IMAGE, stored)
    alone = np.concatenate([finish(IMAGE, stored[i : i + 1]) for i in range(3)])
    assert together.tobytes() == alone.tobytes()
    assert together.dtype == np.float32


def test_items_of_a_batch_are_named() -> None:
    with pytest.raises(DataError, match="item 1: an image is sent as the bytes"):
        store_form(IMAGE, [png(), "cat.png"])


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(buffer, "PNG")
    return buffer.getvalue()


TENSOR = TensorInput(shape=(2, 3), mean=1.0, std=2.0)


def test_nested_lists_become_a_tensor() -> None:
    got = encode(TENSOR, [[[1, 2, 3], [4, 5.5, True]], np.ones((2, 3), dtype=np.int8)])
    assert got.tolist() == [[[0, 0.5, 1], [1.5, 2.25, 0]], [[0] * 3] * 2]
    assert got.dtype == np.float32


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ([[1, 2], [3, 4]], r"shape \[2, 2\]"),
        ([[1, 2, 3], [4]], "ragged"),
        ([["1", "2", "3"]] * 2, "not a number"),
        ([[1, 2, None]] * 2, "not a number"),
        ([[1, 2, math.nan], [1, 2, 3]], r"number at \[0, 2\]"),
        ([[1, 2, 3], [1e39, 2, 3]], r"number at \[1, 0\]"),
        (3, r"shape \[\]"),
        ({"a": 1}, "not a number"),
    ],
)
def test_a_wrong_tensor_is_refused(item: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        encode(TENSOR, [item])


@pytest.mark.parametrize("spec", [IMAGE, TABLE, TENSOR, TensorInput(shape=())])
def test_an_empty_batch_is_an_empty_batch(spec) -> None:
    assert encode(spec, []).shape == (0, *spec.shape)


@pytest.mark.parametrize("spec", [IMAGE, TABLE, TENSOR])
def test_a_description_is_json_and_its_example_is_accepted(spec) -> None:
    described = json.loads(msgspec.json.encode(describe(spec)))
    assert described["summary"]
    if described["kind"] == "image":
        assert "image/png" in described["media_types"]
    else:
        assert encode(spec, [described["example"]]).shape == (1, *spec.shape)
    if described["kind"] == "table":
        assert described["schema"]["required"] == ["age", "height", "town", "smoker"]
