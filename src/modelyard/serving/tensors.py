"""Tensors on the wire, as the Open Inference Protocol v2 writes them: JSON, or raw bytes behind a JSON header.

Requests come from strangers: every size is checked against the signature and against the bytes that
are really there before anything is allocated. The protocol's text:
github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md, and Triton's
``extension_binary_data.md``.
"""

import math
import struct
from functools import cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelyard.serving.batcher import Tensors
from modelyard.serving.plane import describe, fit_shape
from modelyard.spec.errors import RequestError, ServingError, nearest
from modelyard.spec.signature import Signature, Tensor

DATATYPES = {
    "BOOL": "bool",
    **{
        f"{sign}INT{bits}": f"{sign.lower()}int{bits}"
        for sign in ("", "U")
        for bits in (8, 16, 32, 64)
    },
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
"""The protocol's name to NumPy's; BYTES is an object array of ``bytes``."""
NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_NO_DATA = msgspec.Raw()


class WireTensor(msgspec.Struct, frozen=True):
    """One input of a request."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = _NO_DATA


class WireOutput(msgspec.Struct, frozen=True):
    """One output that a request asks for."""

    name: str
    parameters: dict[str, Any] = {}


class WireRequest(msgspec.Struct, frozen=True):
    """The JSON of a request; what it does not name is ignored, as the protocol allows."""

    inputs: list[WireTensor]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[WireOutput] | None = None


class InferRequest(msgspec.Struct, frozen=True):
    """A request understood: arrays, and how its answer is wanted."""

    inputs: Tensors
    outputs: dict[str, bool]
    """Name of each wanted output, and whether it is wanted as raw bytes."""
    id: str
    timeout_seconds: float | None


_decoder = msgspec.json.Decoder(WireRequest)
_encoder = msgspec.json.Encoder()


def decode_request(
    body: bytes | bytearray, header_length: str | None, signature: Signature
) -> InferRequest:
    """Read a request; ``header_length`` is the header ``Inference-Header-Content-Length``, if sent.

    Raises RequestError, naming what is wrong and where.
    """
    size = _header_size(header_length, len(body))
    view = memoryview(body)
    request = _decode(_decoder, view[:size], "the request")
    inputs = _read_inputs(request, view[size:], signature)
    return InferRequest(
        inputs, _wanted(request, signature), request.id, _timeout(request.parameters)
    )


def encode_response(
    request: InferRequest, outputs: Tensors, model: str, version: str
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON header where raw tensors follow it."""
    described, raw = [], []
    for name, binary in request.outputs.items():
        array = outputs[name]
        entry: dict[str, Any] = {
            "name": name,
            "datatype": NAMES[array.dtype.name],
            "shape": list(array.shape),
        }
        if binary:
            content = _to_bytes(array)
            entry["parameters"] = {"binary_data_size": len(content)}
            raw.append(content)
        else:
            entry["data"] = _to_json(name, array)
        described.append(entry)
    head: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id:
        head["id"] = request.id
    text = _encoder.encode(head | {"outputs": described})
    return (b"".join([text, *raw]), len(text)) if raw else (text, None)


def _header_size(header_length: str | None, total: int) -> int:
    if header_length is None:
        return total
    if not (header_length.isascii() and header_length.isdigit()) or len(header_length) > 12:
        raise RequestError(f"Inference-Header-Content-Length is {header_length!r}, not a size")
    if int(header_length) > total:
        raise RequestError(
            f"Inference-Header-Content-Length is {int(header_length)}, but the body has {total} bytes"
        )
    return int(header_length)


def _decode(decoder: "msgspec.json.Decoder[Any]", text: Any, where: str) -> Any:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{where} cannot be read: {error}") from error
    except RecursionError as error:
        raise RequestError(f"{where} is nested too deep") from error


def _read_inputs(request: WireRequest, raw: memoryview, signature: Signature) -> Tensors:
    known = {tensor.name: tensor for tensor in signature.inputs}
    inputs: Tensors = {}
    offset = 0
    for wire in request.inputs:
        if wire.name in inputs:
            raise RequestError(f"input {wire.name!r} is there twice")
        if wire.name not in known:
            close = nearest(wire.name, known) or next(iter(known))
            raise RequestError(f"there is no input {wire.name!r}", f"did you mean {close!r}?")
        tensor = known[wire.name]
        _check_datatype(wire, tensor)
        fit_shape(tensor, wire.shape)
        if "binary_data_size" in wire.parameters:
            size = _binary_size(wire, len(raw) - offset)
            inputs[wire.name] = _from_bytes(wire, raw[offset : offset + size])
            offset += size
        else:
            inputs[wire.name] = _from_json(wire)
    if offset != len(raw):
        raise RequestError(
            f"{len(raw)} bytes follow the JSON header, the inputs' binary_data_size add up to {offset}"
        )
    return inputs


def _check_datatype(wire: WireTensor, tensor: Tensor) -> None:
    wanted = NAMES[tensor.dtype]
    if wire.datatype == wanted:
        return
    close = nearest(wire.datatype, DATATYPES) if wire.datatype not in DATATYPES else ""
    hint = f"; did you mean {close!r}?" if close else ""
    raise RequestError(
        f"input {wire.name!r} has datatype {wire.datatype!r}, the model takes {wanted}{hint}",
        f"it takes {describe(tensor)}",
    )


def _binary_size(wire: WireTensor, left: int) -> int:
    size = wire.parameters["binary_data_size"]
    if type(size) is not int or size < 0:
        raise RequestError(f"input {wire.name!r}: binary_data_size is {size!r}, not a size")
    if wire.data is not _NO_DATA and bytes(wire.data):
        raise RequestError(f"input {wire.name!r} has both data and binary_data_size")
    if size > left:
        raise RequestError(
            f"input {wire.name!r}: binary_data_size is {size}, but {left} bytes are left in the body",
            "send Inference-Header-Content-Length, and the tensors right after the JSON header",
        )
    return size


def _from_bytes(wire: WireTensor, raw: memoryview) -> NDArray[Any]:
    """Little-endian, row-major; no copy unless the bytes lie at an odd address."""
    count = math.prod(wire.shape)
    if wire.datatype == "BYTES":
        return _texts_from_bytes(wire, raw, count)
    dtype = np.dtype(DATATYPES[wire.datatype])
    if len(raw) != count * dtype.itemsize:
        raise RequestError(
            f"input {wire.name!r}: shape {wire.shape} of {wire.datatype} takes {count * dtype.itemsize} bytes, there are {len(raw)}"
        )
    little = np.frombuffer(raw, dtype.newbyteorder("<"))
    if wire.datatype == "BOOL" and little.view(np.uint8).max() > 1:
        raise RequestError(f"input {wire.name!r}: a BOOL must be the byte 0 or 1")
    array = little.astype(dtype, copy=False).reshape(wire.shape)
    return np.require(array, requirements=["A", "C"])


def _texts_from_bytes(wire: WireTensor, raw: memoryview, count: int) -> NDArray[Any]:
    """Each element is a little-endian uint32 length and that many bytes."""
    if len(raw) < 4 * count:
        raise RequestError(f"input {wire.name!r}: {len(raw)} bytes are too few for {count} BYTES")
    items, offset = [], 0
    for _ in range(count):
        if offset + 4 > len(raw):
            raise RequestError(f"input {wire.name!r}: the BYTES end early")
        (length,) = struct.unpack_from("<I", raw, offset)
        offset += 4 + length
        if offset > len(raw):
            raise RequestError(f"input {wire.name!r}: the BYTES end early")
        items.append(bytes(raw[offset - length : offset]))
    if offset != len(raw):
        raise RequestError(f"input {wire.name!r}: {len(raw) - offset} bytes too many")
    return _objects(items, wire.shape)


def _objects(items: list[bytes], shape: list[int]) -> NDArray[Any]:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape)


@cache
def _data_decoder(datatype: str, depth: int) -> "msgspec.json.Decoder[Any]":
    """A decoder of lists, ``depth`` deep, of the JSON type that fits ``datatype``."""
    kind: Any = {"BOOL": bool, "BYTES": str}.get(
        datatype, float if datatype.startswith("FP") else int
    )
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _from_json(wire: WireTensor) -> NDArray[Any]:
    """Flat, row-major data, or nested exactly as the shape says."""
    text = bytes(wire.data)
    where = f"input {wire.name!r}: data"
    if not text:
        raise RequestError(
            f"input {wire.name!r} has no data", "send `data`, or `binary_data_size` and raw bytes"
        )
    nested = text[1:64].lstrip()[:1] == b"[" and len(wire.shape) > 1
    values = _decode(_data_decoder(wire.datatype, len(wire.shape) if nested else 1), text, where)
    count = math.prod(wire.shape)
    if not nested and len(values) != count:
        raise RequestError(f"{where} has {len(values)} values, shape {wire.shape} takes {count}")
    try:
        array = _array(wire.datatype, values)
    except (ValueError, OverflowError) as error:
        reason = "rows of different length" if "homogeneous" in str(error) else str(error)
        raise RequestError(f"{where} does not fit {wire.datatype}: {reason}") from error
    if nested and list(array.shape) != wire.shape:
        raise RequestError(f"{where} is nested as {list(array.shape)}, the shape is {wire.shape}")
    return array.reshape(wire.shape)


def _array(datatype: str, values: list[Any]) -> NDArray[Any]:
    """Raises ValueError or OverflowError where a value does not fit the datatype."""
    dtype = np.dtype(DATATYPES[datatype])
    if datatype == "BYTES":
        shape = list(np.shape(values))
        flat = np.array(values, dtype=object).ravel()
        return _objects([text.encode() for text in flat], shape)
    if dtype.kind not in "iu":
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=dtype)
        if dtype.kind == "f" and not np.isfinite(array).all():
            raise OverflowError("a number is too large")
        return array
    wide = np.array(values, dtype=np.uint64 if datatype == "UINT64" else np.int64)
    limits = np.iinfo(dtype)
    if wide.min() < limits.min or wide.max() > limits.max:
        raise OverflowError(f"numbers must be {limits.min} to {limits.max}")
    return wide.astype(dtype)


def _wanted(request: WireRequest, signature: Signature) -> dict[str, bool]:
    known = [tensor.name for tensor in signature.outputs]
    default = _flag(request.parameters, "binary_data_output", default=False)
    if not request.outputs:
        return dict.fromkeys(known, default)
    wanted: dict[str, bool] = {}
    for output in request.outputs:
        if output.name not in known:
            close = nearest(output.name, known) or known[0]
            raise RequestError(f"there is no output {output.name!r}", f"did you mean {close!r}?")
        if output.name in wanted:
            raise RequestError(f"output {output.name!r} is asked for twice")
        if "classification" in output.parameters:
            raise RequestError(
                "the classification extension is not supported", "use POST /predict for labels"
            )
        wanted[output.name] = _flag(output.parameters, "binary_data", default=default)
    return wanted


def _flag(parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(f"parameter {name} is {value!r}, not true or false")
    return value


def _timeout(parameters: dict[str, Any]) -> float | None:
    """Triton's parameter ``timeout``: whole microseconds; 0 is none."""
    value = parameters.get("timeout", 0)
    if type(value) is not int or value < 0:
        raise RequestError(f"parameter timeout is {value!r}, not a number of microseconds")
    return value / 1e6 if value else None


def _to_bytes(array: NDArray[Any]) -> bytes:
    if array.dtype == object:
        texts = [item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel()]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _to_json(name: str, array: NDArray[Any]) -> list[Any]:
    if array.dtype == object:
        return [item.decode() if isinstance(item, bytes) else item for item in array.ravel()]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ServingError(
            f"output {name!r} holds NaN or infinity, which JSON cannot carry",
            "ask for it with binary_data to see the values",
        )
    flat: list[Any] = array.ravel().tolist()
    return flat
