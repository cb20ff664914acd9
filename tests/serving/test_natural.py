import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from modelyard.serving.natural import WrongKind, read_items
from modelyard.spec.errors import RequestError
from modelyard.spec.signature import (
    CategoricalColumn,
    ImageInput,
    NaturalInput,
    NumericColumn,
    TableInput,
    TensorInput,
    TextInput,
)

IMAGE = ImageInput(height=2, width=2, color="grey", mean=(0.0,), std=(1.0,))
TABLE = TableInput(
    columns=(
        NumericColumn(name="age", fill=0.0, mean=0.0, std=1.0),
        CategoricalColumn(name="row", categories=("a", "b")),
    )
)
TENSOR = TensorInput(shape=(2,))
TEXT = TextInput(length=4, tokens="bytes")
FORM = "application/x-www-form-urlencoded"
PNG = b"\x89PNG\r\n\x1a\n rest"


def read(kind: str, body: bytes, natural: NaturalInput) -> list[Any]:
    headers = Headers({"content-type": kind} if kind else {})
    return asyncio.run(read_items(headers, body, natural))


@pytest.mark.parametrize(
    ("kind", "body", "natural", "items"),
    [
        (FORM, PNG, IMAGE, [PNG]),  # plain curl --data-binary
        ("image/png", PNG, IMAGE, [PNG]),
        ("image/avif", b"anything", IMAGE, [b"anything"]),
        ("application/octet-stream", b"anything", IMAGE, [b"anything"]),
        ("", PNG, IMAGE, [PNG]),
        ("application/json", b'{"row": {"age": 1, "row": "a"}}', TABLE, [{"age": 1, "row": "a"}]),
        (FORM, b'{"rows": [{"age": 1}, {"age": 2}]}', TABLE, [{"age": 1}, {"age": 2}]),
        ("application/json", b'{"age": 1, "row": "a"}', TABLE, [{"age": 1, "row": "a"}]),
        ("application/json", b'{"row": "a"}', TABLE, [{"row": "a"}]),  # a column of that name
        ("application/json", b' [{"age": 1}]', TABLE, [{"age": 1}]),
        ("text/csv", b"age,row\n1,a\n,b\n", TABLE, [{"age": "1", "row": "a"}, {"age": None, "row": "b"}]),
        (FORM, b'\xef\xbb\xbfage,row\r\n"1","a,\nb"\r\n', TABLE, [{"age": "1", "row": "a,\nb"}]),
        ("application/json", b'{"row": [1, 2]}', TENSOR, [[1, 2]]),
        ("application/json", b"[1, 2]", TENSOR, [[1, 2]]),
        ("application/json", b"[[1, 2], [3, 4]]", TENSOR, [[1, 2], [3, 4]]),
        ("application/json", b'{"rows": [[1, 2]]}', TENSOR, [[1, 2]]),
        ("text/plain", b'{"a": 1} is JSON', TEXT, [b'{"a": 1} is JSON']),
        (FORM, "grün".encode(), TEXT, ["grün".encode()]),
        ("application/json", b'"a text"', TEXT, ["a text"]),
        ("application/json", b'{"text": "a"}', TEXT, [{"text": "a"}]),
        (FORM, b'{"row": "a"}', TEXT, ["a"]),
        ("application/json", b'{"rows": ["a", {"text": "b"}]}', TEXT, ["a", {"text": "b"}]),
        ("application/json", b'["a", "b"]', TEXT, ["a", "b"]),
    ],
)  # fmt: skip
def test_what_people_send(kind: str, body: bytes, natural: NaturalInput, items: list[Any]) -> None:
    assert read(kind, body, natural) == items


@pytest.mark.parametrize(
    ("kind", "body", "natural", "words"),
    [
        ("image/png", b"", IMAGE, "empty"),
        (FORM, b"hello", IMAGE, "curl --data-binary @picture.png"),
        ("application/json", b"{}", IMAGE, "takes image files"),
        ("image/png", PNG, TABLE, "takes no images"),
        ("application/json", b"{bad", TABLE, "cannot be read"),
        ("application/json", b"[" * 100_000, TABLE, "cannot be read|too deep"),
        ("application/json", b'{"age": NaN}', TABLE, "cannot be read"),
        ("text/csv", b"age,row\n", TABLE, "no row"),
        ("text/csv", b"age,age\n1,2\n", TABLE, "twice"),
        ("text/csv", b"age,row\n1,a\n2\n", TABLE, "line 3 of the CSV has 1 cells"),
        ("text/csv", b"age\xff\xfe,row\n", TABLE, "neither JSON nor CSV"),
        ("text/plain", b"1 2", TENSOR, "takes JSON"),
        ("application/json", b"a text", TEXT, "cannot be read"),
        ("image/png", PNG, TEXT, "takes no images"),
        ("multipart/form-data", b"x", IMAGE, "form cannot be read"),
        ("multipart/form-data; boundary=b", b"--b--\r\n", IMAGE, "form"),
    ],
)
def test_what_cannot_be_read_is_explained(
    kind: str, body: bytes, natural: NaturalInput, words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        read(kind, body, natural)


def test_another_kind_of_input_is_told_apart_from_a_mistake() -> None:
    with pytest.raises(WrongKind):
        read("text/plain", b"hello", IMAGE)


def test_a_form_may_hold_many_files_of_any_bytes() -> None:
    files = [PNG + bytes(range(256)) * 9, PNG + b"\r\n--b\r"]
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="1.png"\r\n\r\n'
        + file
        + b"\r\n"
        for file in files
    ]
    body = b"".join(parts) + b"--b--\r\n"
    assert read("multipart/form-data; boundary=b", body, IMAGE) == files


@given(body=st.binary(max_size=80), kind=st.sampled_from(["", FORM, "text/csv", "application/json", "multipart/form-data; boundary=b", "image/png"]))  # fmt: skip
def test_any_bytes_are_read_or_refused(body: bytes, kind: str) -> None:
    for natural in (IMAGE, TABLE, TENSOR):
        try:
            read(kind, body, natural)
        except RequestError as error:
            assert error.what


@given(st.lists(st.fixed_dictionaries({"age": st.floats(allow_nan=False, allow_infinity=False)}), min_size=1))  # fmt: skip
def test_rows_as_json_come_out_as_they_went_in(rows: list[dict[str, float]]) -> None:
    assert read("application/json", json.dumps({"rows": rows}).encode(), TABLE) == rows
