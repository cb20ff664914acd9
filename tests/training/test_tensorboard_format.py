"""TensorBoard's own readers take every kind of value that is written."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from modelyard.training import tensorboard_format as form
from modelyard.training.tensorboard_format import crc32c


def accumulated(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"histograms": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def write(folder: Path, *records: bytes) -> None:
    (folder / "events.out.tfevents.1.modelyard").write_bytes(
        b"".join([form.file_header(1.0), *records])
    )


def test_crc32c_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of RFC 3720's polynomial
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_histograms_and_images_are_read_back(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 3), "red").save(buffer, "PNG")
    bars = form.histogram("weights/a", edges=(-1, 0, 2), counts=(3, 5), total=4, squares=9.5)
    picture = form.image("data/samples", buffer.getvalue(), (3, 5), 3)
    write(tmp_path, form.summary(2.0, 7, [bars, picture]))
    found = accumulated(tmp_path)
    (event,) = found.Histograms("weights/a")
    value = event.histogram_value
    assert (event.step, value.min, value.max, value.num, value.sum) == (7, -1, 2, 8, 4)
    assert list(value.bucket_limit) == [0, 2] and list(value.bucket) == [3, 5]
    (shown,) = found.Images("data/samples")
    assert (shown.width, shown.height) == (5, 3)
    with Image.open(io.BytesIO(shown.encoded_image_string)) as read:
        assert read.getpixel((0, 0)) == (255, 0, 0)


def test_hyper_parameters_are_those_of_the_plugin(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import metadata

    values: dict[str, float | str | bool] = {"rate": 0.5, "name": "adamw", "fast": True}
    begun = form.hyper_parameters("run-1", values, 3.5)
    write(tmp_path, form.summary(1.0, 0, [begun]), form.summary(2.0, 0, [form.session_end(1, 9.0)]))
    contents = accumulated(tmp_path).summary_metadata
    start = metadata.parse_session_start_info_plugin_data(
        contents["_hparams_/session_start_info"].plugin_data.content
    )
    assert start.group_name == "run-1" and start.start_time_secs == 3.5
    assert start.hparams["rate"].number_value == 0.5
    assert start.hparams["name"].string_value == "adamw" and start.hparams["fast"].bool_value
    end = metadata.parse_session_end_info_plugin_data(
        contents["_hparams_/session_end_info"].plugin_data.content
    )
    assert end.status == form.SUCCESS and end.end_time_secs == 9.0


def test_a_session_that_starts_again_takes_back_what_came_after(tmp_path: Path) -> None:
    def at(step: int, value: float) -> bytes:
        return form.summary(step, step, [form.scalar("loss", value)])

    write(tmp_path, at(10, 3), at(20, 2), form.session_start(21, 11), at(15, 1))
    found = accumulated(tmp_path).Scalars("loss")
    assert [(event.step, event.value) for event in found] == [(10, 3), (15, 1)]


@pytest.mark.parametrize("value", [0.0, -1.5, 1e300, float("nan"), float("inf")])
def test_any_number_is_a_scalar(tmp_path: Path, value: float) -> None:
    write(tmp_path, form.summary(1, 1, [form.scalar("x", value)]))
    (event,) = accumulated(tmp_path).Scalars("x")
    expected = float("inf") if value == 1e300 else value
    assert event.value == pytest.approx(expected, nan_ok=True)
