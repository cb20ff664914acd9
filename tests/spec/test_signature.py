"""Signatures and natural inputs: shapes, and that JSON keeps them."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.spec.signature import (
    BooleanColumn,
    CategoricalColumn,
    ImageInput,
    NaturalInput,
    NumericColumn,
    Signature,
    TableInput,
    Tensor,
    TensorInput,
    TextInput,
)

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COLUMNS = st.one_of(
    st.builds(
        NumericColumn,
        name=st.text(),
        fill=NUMBERS,
        mean=NUMBERS,
        std=NUMBERS,
        indicator=st.booleans(),
    ),
    st.builds(CategoricalColumn, name=st.text(), categories=st.lists(st.text()).map(tuple)),
    st.builds(BooleanColumn, name=st.text(), fill=NUMBERS),
)
NATURALS = st.one_of(
    st.builds(
        ImageInput,
        height=st.integers(1, 4000),
        width=st.integers(1, 4000),
        color=st.sampled_from(["rgb", "grey"]),
        mean=st.lists(NUMBERS).map(tuple),
        std=st.lists(NUMBERS).map(tuple),
    ),
    st.builds(TableInput, columns=st.lists(COLUMNS).map(tuple)),
    st.builds(
        TextInput,
        length=st.integers(1, 9),
        tokens=st.sampled_from(["words", "bytes"]),
        words=st.lists(st.text()).map(tuple),
    ),
    st.builds(TensorInput, shape=st.lists(st.integers(1, 9)).map(tuple), mean=NUMBERS, std=NUMBERS),
)


@given(NATURALS)
def test_every_natural_input_comes_back_from_json(natural: NaturalInput) -> None:
    assert msgspec.json.decode(msgspec.json.encode(natural), type=NaturalInput) == natural


def test_a_free_batch_axis_is_null_in_json() -> None:
    tensor = Tensor(name="input", dtype="float32", shape=(None, 3, 8, 8))
    signature = Signature(inputs=(tensor,), outputs=())
    text = msgspec.json.encode(signature)
    assert b"[null,3,8,8]" in text
    assert msgspec.json.decode(text, type=Signature) == signature


@pytest.mark.parametrize(("color", "channels"), [("rgb", 3), ("grey", 1)])
def test_an_image_has_channels_first(color: str, channels: int) -> None:
    image = ImageInput(height=8, width=6, color=color, mean=(), std=())  # type: ignore[arg-type]
    assert image.shape == (channels, 8, 6)


def test_a_row_is_as_wide_as_its_columns_together() -> None:
    row = TableInput(
        columns=(
            NumericColumn(name="age", fill=0, mean=0, std=1),
            NumericColumn(name="pay", fill=0, mean=0, std=1, indicator=True),
            CategoricalColumn(name="town", categories=("a", "b", "c")),
            BooleanColumn(name="new", fill=0.5),
        )
    )
    assert row.shape == (1 + 2 + 3 + 1,)
    assert TableInput(columns=()).shape == (0,)


def test_an_unknown_kind_of_input_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="audio"):
        msgspec.json.decode(b'{"type":"audio"}', type=NaturalInput)


def test_a_signature_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        TensorInput(shape=(1,)).mean = 1.0  # type: ignore[misc]
