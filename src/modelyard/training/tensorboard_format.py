"""TensorBoard's event files as bytes, written without TensorFlow or torch.

The format is small and old. A file is a row of records: length (uint64, little-endian), masked crc32c
of the length, data, masked crc32c of the data (tensorflow/core/lib/io/record_writer.h; the mask is
``((crc >> 15 | crc << 17) + 0xa282ead8)``, tensorflow/core/lib/hash/crc32c.h). The data is one
``Event`` message (tensorflow/core/util/event.proto: wall_time = 1 double, step = 2 int64,
file_version = 3 string, summary = 5, session_log = 7), whose ``Summary``
(tensorflow/core/framework/summary.proto) holds ``Value``s (value = 1; in it tag = 1 string,
simple_value = 2 float, image = 4, histo = 5, tensor = 8, metadata = 9). Hyper-parameters are metadata of
the plugin ``hparams`` (tensorboard/plugins/hparams/plugin_data.proto and api.proto). Protocol Buffers'
wire format: field number and wire type in a varint, then the value.
"""

import struct
from collections.abc import Mapping, Sequence

_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5
_CASTAGNOLI = 0x82F63B78
_HPARAMS = "hparams"
RUNNING, SUCCESS, FAILURE = 3, 1, 2
"""How a session stands, in the plugin's numbers."""


def file_header(wall_time: float) -> bytes:
    """The record that every event file begins with."""
    return record(_double_field(1, wall_time) + _bytes_field(3, b"brain.Event:2"))


def session_start(wall_time: float, step: int) -> bytes:
    """Training begins again at ``step``: TensorBoard forgets what it has from there on."""
    log = _bytes_field(7, _varint_field(1, 1))
    return record(_double_field(1, wall_time) + _varint_field(2, step) + log)


def summary(wall_time: float, step: int, values: Sequence[bytes]) -> bytes:
    """One event that holds ``values``, each made by a function below."""
    content = b"".join(_bytes_field(1, value) for value in values)
    return record(_double_field(1, wall_time) + _varint_field(2, step) + _bytes_field(5, content))


def scalar(tag: str, value: float) -> bytes:
    return _bytes_field(1, tag.encode()) + _float_field(2, value)


def image(tag: str, png: bytes, size: tuple[int, int], channels: int) -> bytes:
    """``size`` is (height, width)."""
    content = (
        _varint_field(1, size[0])
        + _varint_field(2, size[1])
        + _varint_field(3, channels)
        + _bytes_field(4, png)
    )
    return _bytes_field(1, tag.encode()) + _bytes_field(4, content)


def histogram(
    tag: str,
    *,
    edges: Sequence[float],
    counts: Sequence[float],
    total: float,
    squares: float,
) -> bytes:
    """``edges`` are one more than ``counts``; ``total`` and ``squares`` sum up the values and their squares."""
    content = b"".join(
        [
            _double_field(1, edges[0]),
            _double_field(2, edges[-1]),
            _double_field(3, float(sum(counts))),
            _double_field(4, total),
            _double_field(5, squares),
            _bytes_field(6, struct.pack(f"<{len(counts)}d", *edges[1:])),
            _bytes_field(7, struct.pack(f"<{len(counts)}d", *counts)),
        ]
    )
    return _bytes_field(1, tag.encode()) + _bytes_field(5, content)


def hyper_parameters(group: str, values: Mapping[str, float | str | bool], began: float) -> bytes:
    """What a run was begun with, for the tab HPARAMS."""
    entries = b"".join(
        _bytes_field(1, _bytes_field(1, name.encode()) + _bytes_field(2, _any_value(value)))
        for name, value in values.items()
    )
    content = entries + _bytes_field(4, group.encode()) + _double_field(5, began)
    return _session("session_start_info", _bytes_field(3, content))


def session_end(status: int, ended: float) -> bytes:
    return _session(
        "session_end_info", _bytes_field(4, _varint_field(1, status) + _double_field(2, ended))
    )


def _session(name: str, content: bytes) -> bytes:
    plugin = _bytes_field(1, _HPARAMS.encode()) + _bytes_field(2, content)
    nothing = _varint_field(1, 1) + _bytes_field(2, _bytes_field(2, _varint_field(1, 0)))
    return (
        _bytes_field(1, f"_hparams_/{name}".encode())
        + _bytes_field(8, nothing)  # an empty tensor, since a value must have one
        + _bytes_field(9, _bytes_field(1, plugin))
    )


def _any_value(value: float | str | bool) -> bytes:
    """google.protobuf.Value."""
    if isinstance(value, bool):
        return _varint_field(4, int(value))
    if isinstance(value, str):
        return _bytes_field(3, value.encode())
    return _double_field(2, float(value))


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return b"".join([length, _masked_crc(length), data, _masked_crc(data)])


def _masked_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli; RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CASTAGNOLI if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _table()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _varint_field(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _varint(value)


def _double_field(field: int, value: float) -> bytes:
    return _key(field, _DOUBLE) + struct.pack("<d", value)


def _float_field(field: int, value: float) -> bytes:
    # A value beyond float32 (a loss that explodes) becomes infinity instead of an error.
    limited = value if abs(value) <= 3.4e38 else value * float("inf")
    return _key(field, _FLOAT) + struct.pack("<f", limited)


def _bytes_field(field: int, value: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(value)) + value
