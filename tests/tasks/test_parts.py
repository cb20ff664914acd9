"""Rows of several parts: what is packed comes out again, and by the names that the model knows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import (
    ImageInput,
    MixedInput,
    NumericColumn,
    Signature,
    TableInput,
    Tensor,
    TextInput,
)
from modelyard.tasks.parts import (
    by_name,
    columns_of,
    finished_parts,
    from_names,
    model_parts,
    pack,
    parts_of,
    row_bytes,
    stored_parts,
    trial_rows,
    unpack,
)
from modelyard.tasks.signature import signature_of

TASK = TaskSpec(type="classification", target="y", loss="cross-entropy", classes=("a", "b"))


def mixed(side: int = 3, length: int = 5, columns: int = 2) -> MixedInput:
    """A grey picture, a text, columns; what is 0 is not there."""
    picture = ImageInput(height=side, width=side + 1, color="grey", mean=(0.25,), std=(0.5,))
    names = tuple(NumericColumn(name=f"c{n}", fill=0.0, mean=0.0, std=1.0) for n in range(columns))
    return MixedInput(
        image=picture if side else None,
        text=TextInput(length=length, tokens="bytes") if length else None,
        table=TableInput(columns=names) if columns else None,
        image_column="photo" if side else "",
        text_column="title" if length else "",
    )


parts_that_are_there = st.tuples(*[st.integers(0, 6)] * 3).filter(
    lambda sizes: sum(map(bool, sizes)) > 1
)


@given(sizes=parts_that_are_there, count=st.integers(0, 5), seed=st.integers(0, 99))
def test_what_is_packed_comes_out_again(sizes: tuple[int, int, int], count: int, seed: int) -> None:
    spec, random = mixed(*sizes), np.random.default_rng(seed)
    for parts in (stored_parts(spec), finished_parts(spec)):
        arrays = {
            part.name: random.integers(0, 200, (count, *part.shape)).astype(part.dtype)
            for part in parts
        }
        rows = pack(parts, arrays)
        assert rows.dtype == np.uint8 and rows.shape == (count, row_bytes(parts))
        for name, array in unpack(parts, rows).items():
            assert array.dtype == arrays[name].dtype
            np.testing.assert_array_equal(array, arrays[name])
            assert array.flags.aligned and not np.shares_memory(array, rows)


@given(sizes=parts_that_are_there)
def test_parts_fill_the_row_without_gaps_and_lie_where_their_numbers_may(
    sizes: tuple[int, int, int],
) -> None:
    for parts in (stored_parts(mixed(*sizes)), finished_parts(mixed(*sizes))):
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
        assert all(part.start % np.dtype(part.dtype).itemsize == 0 for part in parts)


def test_the_service_lays_rows_out_as_preparation_does() -> None:
    """From the tensors alone, or from the description of the columns: the same bytes."""
    for sizes in ((3, 5, 2), (0, 5, 2), (3, 0, 2), (3, 5, 0)):
        spec = mixed(*sizes)
        assert model_parts(signature_of(spec, TASK)) == finished_parts(spec)


def test_a_model_gets_its_tensors_by_name_in_the_order_of_its_signature() -> None:
    signature = signature_of(mixed(), TASK)
    assert [(t.name, t.dtype, t.shape, t.below) for t in signature.inputs] == [
        ("image", "float32", (None, 1, 3, 4), None),
        ("text", "int64", (None, 5), 257),
        ("table", "float32", (None, 2), None),
    ]
    rows = trial_rows(model_parts(signature), 2)
    named = by_name(signature, rows)
    assert list(named) == ["image", "text", "table"]
    assert named["text"].tolist() == [[1] * 5] * 2 and named["table"].tolist() == [[0.5] * 2] * 2
    np.testing.assert_array_equal(from_names(signature, named), rows)


def test_one_input_is_no_row_of_bytes() -> None:
    tensor = Tensor(name="input", dtype="float32", shape=(None, 3))
    signature = Signature(inputs=(tensor,), outputs=(tensor,))
    given = np.zeros((2, 3), np.float32)
    assert model_parts(signature) == () == parts_of(signature, None)
    assert by_name(signature, given)["input"] is given
    assert from_names(signature, {"input": given}) is given


def test_a_tensor_that_is_missing_is_named() -> None:
    with pytest.raises(KeyError, match="table"):
        from_names(
            signature_of(mixed(), TASK), {"image": np.zeros((1, 1, 3, 4)), "text": np.zeros((1, 5))}
        )


def test_the_columns_of_a_table_are_told_whether_it_is_alone_or_not() -> None:
    table = mixed().table
    assert columns_of(table) == columns_of(mixed()) == (("c0", 1), ("c1", 1))
    assert columns_of(mixed().image) == columns_of(None) == ()
