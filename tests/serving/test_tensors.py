import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelyard.serving.tensors import (
    DATATYPES,
    NAMES,
    InferRequest,
    decode_request,
    encode_response,
)
from modelyard.spec.errors import RequestError, ServingError
from modelyard.spec.signature import Signature, Tensor

TWO = Signature(
    inputs=(Tensor(name="x", dtype="float32", shape=(None, 2)),),
    outputs=(
        Tensor(name="y", dtype="float32", shape=(None, 1)),
        Tensor(name="z", dtype="int64", shape=(None,)),
    ),
)


def signature(array: np.ndarray) -> Signature:
    shape = (None, *array.shape[1:])
    tensor = Tensor(name="x", dtype=array.dtype.name, shape=shape)
    return Signature(inputs=(tensor,), outputs=(tensor,))


numeric = [np.dtype(dtype) for dtype in DATATYPES.values() if dtype != "object"]
arrays = st.sampled_from(numeric).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=4),
        elements=hnp.from_dtype(dtype, allow_nan=False, allow_infinity=False),
    )
)
texts = hnp.arrays(object, hnp.array_shapes(max_dims=2, max_side=4), elements=st.text(max_size=9))


def round_trip(array: np.ndarray, *, binary: bool) -> np.ndarray:
    """Array -> answer of a server -> the same tensor as a request to another one."""
    asked = InferRequest({}, {"x": binary}, "7", None)
    body, header = encode_response(asked, {"x": array}, "m", "1")
    head = json.loads(body[:header])
    assert (head["id"], head["model_name"], head["model_version"]) == ("7", "m", "1")
    request = json.dumps({"inputs": head["outputs"]}).encode()
    length = None if header is None else str(len(request))
    raw = b"" if header is None else body[header:]
    return decode_request(request + raw, length, signature(array)).inputs["x"]


@given(array=arrays, binary=st.booleans())
def test_numbers_survive_the_wire(array: np.ndarray, binary: bool) -> None:
    back = round_trip(array, binary=binary)
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


@given(array=texts, binary=st.booleans())
def test_texts_survive_the_wire(array: np.ndarray, binary: bool) -> None:
    back = round_trip(array, binary=binary)
    assert back.shape == array.shape
    assert [item.decode() for item in back.ravel()] == array.ravel().tolist()


@given(array=arrays)
def test_nested_data_is_the_same_as_flat(array: np.ndarray) -> None:
    def ask(data: Any) -> np.ndarray:
        tensor = {"name": "x", "shape": array.shape, "datatype": NAMES[array.dtype.name]}
        body = json.dumps({"inputs": [{**tensor, "data": data}]}).encode()
        return decode_request(body, None, signature(array)).inputs["x"]

    assert np.array_equal(ask(array.tolist()), ask(array.ravel().tolist()))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["inputs", "name", "x", "shape", "datatype", "data", "outputs", "parameters"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
hostile_tensor = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "y", ""]),
        "datatype": st.sampled_from([*DATATYPES, "fp32", ""]),
    },
    optional={
        "shape": st.lists(st.integers(-(2**70), 2**70) | st.integers(-1, 3), max_size=3)
        | json_values,
        "data": json_values,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "a"]), st.integers() | json_values
        )
        | json_values,
    },
)


@given(
    body=st.binary(max_size=60)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.lists(hostile_tensor, max_size=3).map(
        lambda inputs: json.dumps({"inputs": inputs}).encode() + b"12345678"
    ),
    header=st.none() | st.integers(-5, 400).map(str) | st.text(max_size=4),
)
def test_hostile_bytes_are_refused_or_understood(body: bytes, header: str | None) -> None:
    try:
        request = decode_request(body, header, TWO)
    except RequestError as error:
        assert error.what
    else:
        assert request.inputs == {} or request.inputs["x"].shape[1:] == (2,)


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]} | changes


@pytest.mark.parametrize(
    ("request_json", "words"),
    [
        ({}, "inputs"),
        ({"inputs": [tensor(data=[1, 2, 3])]}, "3 values, shape [1, 2] takes 2"),
        ({"inputs": [tensor(shape=[1, -2])]}, "[1, -2]"),
        ({"inputs": [tensor(shape=[10**18, 2])]}, "values, shape"),
        ({"inputs": [tensor(shape=[10**30, 10**30])]}, "has shape"),
        ({"inputs": [tensor(shape=[1, 2, 1])]}, "float32 [rows, 2]"),
        ({"inputs": [tensor(shape=[0, 2], data=[])]}, "[0, 2]"),
        ({"inputs": [tensor(datatype="fp32")]}, "did you mean 'FP32'"),
        ({"inputs": [tensor(datatype="INT64")]}, "the model takes FP32"),
        ({"inputs": [tensor(name="X1")]}, "did you mean 'x'"),
        ({"inputs": [tensor(), tensor()]}, "twice"),
        ({"inputs": [tensor(data=["a", "b"])]}, "str"),
        ({"inputs": [tensor(data=[True, False])]}, "bool"),
        ({"inputs": [tensor(data=[None, 1])]}, "null"),
        ({"inputs": [tensor(data=[1e300, 1])]}, "too large"),
        ({"inputs": [tensor(data=[[1], [2]])]}, "nested as [2, 1]"),
        ({"inputs": [tensor(shape=[2, 2], data=[[1, 2], [3]])]}, "different length"),
        ({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32"}]}, "has no data"),
        ({"inputs": [tensor()], "outputs": [{"name": "yy"}]}, "did you mean 'y'"),
        ({"inputs": [tensor()], "outputs": [{"name": "y"}, {"name": "y"}]}, "twice"),
        ({"inputs": [tensor()], "parameters": {"binary_data_output": 1}}, "not true or false"),
        ({"inputs": [tensor()], "parameters": {"timeout": "soon"}}, "microseconds"),
        ({"inputs": [tensor(parameters={"binary_data_size": 8})]}, "both data"),
        ({"inputs": [tensor()], "id": 7}, "id"),
    ],
)
def test_a_wrong_request_is_named(request_json: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as refused:
        decode_request(json.dumps(request_json).encode(), None, TWO)
    assert words in str(refused.value)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "1.", "0x10", "1_000"])
def test_numbers_that_json_does_not_have_are_refused(text: str) -> None:
    body = f'{{"inputs": [{{"name":"x","shape":[1,2],"datatype":"FP32","data":[{text},1]}}]}}'
    with pytest.raises(RequestError):
        decode_request(body.encode(), None, TWO)


@pytest.mark.parametrize("prefix", [b"[", b'{"inputs":', b'{"inputs":[{"data":', b'{"a":'])
def test_very_deep_nesting_is_refused(prefix: bytes) -> None:
    with pytest.raises(RequestError):
        decode_request(prefix + b"[" * 200_000, None, TWO)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("INT8", 128), ("UINT8", -1), ("INT64", 2**63), ("UINT64", -1), ("UINT64", 2**64)],
)
def test_an_integer_that_does_not_fit_is_refused(datatype: str, value: int) -> None:
    one = Signature(
        inputs=(Tensor(name="x", dtype=DATATYPES[datatype], shape=(None,)),), outputs=TWO.outputs
    )
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": datatype, "data": [value]}]}
    with pytest.raises(RequestError, match="does not fit"):
        decode_request(json.dumps(body).encode(), None, one)


def binary(size: Any, raw: bytes, header: Any = None) -> np.ndarray:
    head = {"name": "x", "shape": [1, 2], "datatype": "FP32"}
    head["parameters"] = {"binary_data_size": size}
    text = json.dumps({"inputs": [head]}).encode()
    length = str(len(text)) if header is None else header
    return decode_request(text + raw, length, TWO).inputs["x"]


def test_raw_bytes_are_read_in_place_at_any_address() -> None:
    raw = struct.pack("<2f", 1.5, -2.0)
    for padding in range(8):
        head = {"inputs": [tensor(data=None, parameters={"binary_data_size": 8})]}
        del head["inputs"][0]["data"]
        text = json.dumps(head).encode() + b" " * padding
        array = decode_request(text + raw, str(len(text)), TWO).inputs["x"]
        assert array.tolist() == [[1.5, -2.0]]
        assert array.flags.aligned


@pytest.mark.parametrize(
    ("size", "raw", "header", "words"),
    [
        (8, b"1234", None, "4 bytes are left"),
        (4, b"1234", None, "takes 8 bytes, there are 4"),
        (8, b"12345678more", None, "add up to 8"),
        (-8, b"12345678", None, "not a size"),
        (8.0, b"12345678", None, "not a size"),
        (True, b"12345678", None, "not a size"),
        (8, b"12345678", "100000", "the body has"),
        (8, b"12345678", "-1", "not a size"),
        (8, b"12345678", "٣", "not a size"),
        (2**80, b"12345678", None, "bytes are left"),
    ],
)
def test_raw_sizes_must_agree(size: Any, raw: bytes, header: Any, words: str) -> None:
    with pytest.raises(RequestError) as refused:
        binary(size, raw, header)
    assert words in str(refused.value)


def test_outputs_are_chosen_each_in_its_form() -> None:
    body = {
        "inputs": [tensor()],
        "parameters": {"binary_data_output": True, "timeout": 250_000},
        "outputs": [{"name": "z"}, {"name": "y", "parameters": {"binary_data": False}}],
    }
    request = decode_request(json.dumps(body).encode(), None, TWO)
    assert request.outputs == {"z": True, "y": False}
    assert request.timeout_seconds == 0.25
    outputs = {"y": np.array([[0.5]], np.float32), "z": np.array([-1])}
    text, header = encode_response(request, outputs, "m", "1")
    assert text[header:] == struct.pack("<q", -1)
    described = json.loads(text[:header])["outputs"]
    assert described[0]["parameters"] == {"binary_data_size": 8}
    assert described[1]["data"] == [0.5]


def test_what_json_cannot_say_is_refused_and_binary_says_it() -> None:
    outputs = {"y": np.array([[math.nan]], np.float32)}
    with pytest.raises(ServingError, match="NaN"):
        encode_response(InferRequest({}, {"y": False}, "", None), outputs, "m", "1")
    text, header = encode_response(InferRequest({}, {"y": True}, "", None), outputs, "m", "1")
    assert np.isnan(np.frombuffer(text[header:], np.float32)).all()
