"""The tests that a source must pass; a third party subclasses ``SourceContract`` in its own tests::

class TestMine(SourceContract):
    @pytest.fixture
    def source(self, tmp_path): ...
"""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelyard.data.preprocess import store_form
from modelyard.data.sources.base import ColumnSchema, Rows, Schema, Source
from modelyard.data.table_row import encode_column
from modelyard.spec.signature import (
    BooleanColumn,
    CategoricalColumn,
    Column,
    ImageInput,
    NaturalInput,
    NumericColumn,
    TableInput,
    TensorInput,
    TextInput,
)


class SourceContract:
    """Give a ``source`` fixture with at least three readable rows."""

    def test_it_lists_files_and_code_that_exist(self, source: Source) -> None:
        listed = [*source.files(), *source.code().values()]
        assert listed, "nothing says what the content is: a change would not be noticed"
        assert all(path.is_file() for path in listed)
        assert len(set(source.files())) == len(source.files())
        assert list(source.files()) == list(source.files())

    def test_its_schema_says_what_a_sample_is(self, source: Source) -> None:
        schema = source.schema()
        if schema.kind == "table":
            names = [column.name for column in schema.columns]
            assert names and len(set(names)) == len(names)
        else:
            assert all(length > 0 for length in schema.shape)
            assert schema.kind != "image" or len(schema.shape) == 3

    def test_rows_have_the_promised_form(self, source: Source) -> None:
        rows = source.rows(0, len(source))
        schema = source.schema()
        if isinstance(rows.values, dict):
            assert set(rows.values) == {column.name for column in schema.columns}
            for column in schema.columns:
                _check_column(column, rows.values[column.name], len(source))
        elif schema.kind == "text":
            assert rows.values.shape == (len(source),)
            assert all(isinstance(text, str) for text in rows.values)
        else:
            assert rows.values.shape == (len(source), *schema.shape)
            assert rows.values.dtype == (np.uint8 if schema.kind == "image" else np.float32)
            assert np.isfinite(rows.values).all()

    def test_slices_join_to_the_whole(self, source: Source) -> None:
        middle = len(source) // 2
        whole, first, last = (
            _stack(source.rows(start, stop))
            for start, stop in ((0, len(source)), (0, middle), (middle, len(source)))
        )
        np.testing.assert_array_equal(np.concatenate([first, last]), whole)
        np.testing.assert_array_equal(_stack(source.rows(0, len(source))), whole)

    def test_there_is_one_target_for_each_row(self, source: Source) -> None:
        targets = source.targets()
        assert targets.shape == (len(source),)
        assert all(isinstance(target, str | int | float | None) for target in targets)
        assert list(targets) == list(source.targets())

    def test_a_natural_sample_gives_the_same_bits_as_the_raw_form(self, source: Source) -> None:
        rows = source.rows(0, len(source))
        spec = _plain_input(source.schema())
        expected = _stored(spec, source.schema(), rows)
        readable = [row for row in range(len(source)) if row not in rows.unreadable]
        for row in readable[:: max(1, len(readable) // 10)]:
            suffix, content = source.natural(row)
            item = msgspec.json.decode(content) if suffix == ".json" else content
            assert suffix.startswith(".")
            np.testing.assert_array_equal(store_form(spec, [item])[0], expected[row])

    def test_every_row_has_a_name(self, source: Source) -> None:
        names = [source.name(row) for row in range(len(source))]
        assert all(names) and len(set(names)) == len(names)

    def test_findings_are_for_people(self, source: Source) -> None:
        assert all(finding.kind and finding.message for finding in source.findings())


def _check_column(column: ColumnSchema, values: NDArray[Any], rows: int) -> None:
    assert values.shape == (rows,)
    if column.kind == "categorical":
        assert values.dtype == np.int32
        assert values.min() >= -1 and values.max() < len(column.words)
    else:
        assert values.dtype == np.float64
        assert not np.isinf(values).any()
        assert column.kind == "numeric" or set(values[~np.isnan(values)]) <= {0.0, 1.0}


def _stack(rows: Rows) -> NDArray[Any]:
    if not isinstance(rows.values, dict):
        return rows.values
    return np.stack([rows.values[name].astype(np.float64) for name in sorted(rows.values)], axis=1)


def _plain_input(schema: Schema) -> NaturalInput:
    """An input that changes as little as can be."""
    if schema.kind == "image":
        channels, height, width = schema.shape
        return ImageInput(
            height=height,
            width=width,
            color="grey" if channels == 1 else "rgb",
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
        )
    if schema.kind == "tensor":
        return TensorInput(shape=schema.shape)
    if schema.kind == "text":
        return TextInput(length=50, tokens="bytes")
    columns: list[Column] = []
    for column in schema.columns:
        if column.kind == "numeric":
            plain = NumericColumn(name=column.name, fill=0.0, mean=0.0, std=1.0, indicator=True)
            columns.append(plain)
        elif column.kind == "boolean":
            columns.append(BooleanColumn(name=column.name, fill=0.5))
        else:
            columns.append(CategoricalColumn(name=column.name, categories=column.words))
    return TableInput(columns=tuple(columns))


def _stored(spec: NaturalInput, schema: Schema, rows: Rows) -> NDArray[Any]:
    """Raw form -> stored form, as preparation does it."""
    if isinstance(spec, TextInput):
        return store_form(spec, list(rows.values))
    if not isinstance(rows.values, dict) or not isinstance(spec, TableInput):
        return np.asarray(rows.values)
    parts = []
    for column, described in zip(spec.columns, schema.columns, strict=True):
        values = rows.values[column.name]
        if described.kind == "categorical":
            words = [described.words[code] if code >= 0 else None for code in values]
            parts.append(encode_column(column, words))
        else:
            parts.append(encode_column(column, values))
    return np.concatenate(parts, axis=1)
