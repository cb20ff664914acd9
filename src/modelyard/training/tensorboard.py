"""TensorBoard's event files, written from a run's event log without TensorFlow or torch.

The format is small and old. A file is a row of records: length (uint64, little-endian), masked crc32c
of the length, data, masked crc32c of the data (tensorflow/core/lib/io/record_writer.h; the mask is
``((crc >> 15 | crc << 17) + 0xa282ead8)``, tensorflow/core/lib/hash/crc32c.h). The data is one
``Event`` message (tensorflow/core/util/event.proto: wall_time = 1 double, step = 2 int64,
file_version = 3 string, summary = 5), whose ``Summary`` (tensorflow/core/framework/summary.proto)
holds ``Value``s (value = 1; in it tag = 1 string, simple_value = 2 float). Protocol Buffers' wire
format: field number and wire type in a varint, then the value.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from modelyard.spec.errors import from_os_error
from modelyard.spec.records import AnyEvent, Evaluated, RunFinished, StepDone
from modelyard.store.events import now, read_events
from modelyard.store.files import write_atomic
from modelyard.training.order import EVENTS

_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5
_CASTAGNOLI = 0x82F63B78


class TensorBoardWriter:
    """An observer that adds each event's numbers to a new event file in ``folder``."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads what has "tfevents" in its name, in the order of the names.
            path = folder / f"events.out.tfevents.{now():.6f}.modelyard"
            self._file = path.open("wb")
            self._file.write(file_header(now()))
        except OSError as error:
            raise from_os_error(error) from error

    def __call__(self, event: AnyEvent) -> None:
        try:
            for record in records_of(event):
                self._file.write(record)
            self._file.flush()
        except OSError as error:
            raise from_os_error(error) from error

    def close(self) -> None:
        self._file.close()


def convert(run_folder: Path, log_folder: Path) -> Path:
    """Write the whole event log of a run as one event file in ``log_folder``; an older one is replaced.

    Steps that were trained twice, before and after a restart, appear once: as they were last.
    Raises StoreError.
    """
    events = _without_repeats(read_events(run_folder / EVENTS))
    began = events[0].time if events else now()
    path = log_folder / f"events.out.tfevents.{int(began)}.modelyard"
    content = b"".join([file_header(began), *(r for event in events for r in records_of(event))])
    try:
        write_atomic(path, content)
    except OSError as error:
        raise from_os_error(error) from error
    return path


def file_header(wall_time: float) -> bytes:
    """The record that every event file begins with."""
    version = _bytes_field(3, b"brain.Event:2")
    return _record(_double_field(1, wall_time) + version)


def records_of(event: AnyEvent) -> Iterator[bytes]:
    """The records that show ``event``; none for what has no numbers."""
    if scalars := scalars_of(event):
        step, values = scalars
        summary = b"".join(
            _bytes_field(1, _bytes_field(1, tag.encode()) + _float_field(2, value))
            for tag, value in values.items()
        )
        yield _record(
            _double_field(1, event.time) + _varint_field(2, step) + _bytes_field(5, summary)
        )


def scalars_of(event: AnyEvent) -> tuple[int, dict[str, float]] | None:
    """Step, and tag to value."""
    match event:
        case StepDone():
            values = {
                "train/loss": event.loss,
                "train/learning_rate": event.learning_rate,
                "train/samples_per_second": event.samples_per_second,
                "train/epoch": event.epoch,
            }
            if event.gradient_norm is not None:
                values["train/gradient_norm"] = event.gradient_norm
            return event.step, values
        case Evaluated():
            return event.step, {f"{event.split}/{k}": v for k, v in event.metrics.items()}
        case RunFinished(metrics=metrics) if metrics:
            return event.step, {f"best/{name}": value for name, value in metrics.items()}
        case _:
            return None


def _without_repeats(events: list[AnyEvent]) -> list[AnyEvent]:
    """Drop what a later attempt trained again: steps at or above a later event's step."""
    kept: list[AnyEvent] = []
    lowest: dict[type, float] = {}
    for event in reversed(events):
        if isinstance(event, StepDone | Evaluated):
            if event.step >= lowest.get(type(event), float("inf")):
                continue
            lowest[type(event)] = event.step
        kept.append(event)
    return kept[::-1]


def _record(data: bytes) -> bytes:
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
