"""Image files of every kind become uint8 arrays; broken and hostile ones are refused."""

import io
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from modelyard.data.image_file import decode_image
from modelyard.data.pixels import decode_pixels
from modelyard.spec.errors import DataError
from modelyard.spec.signature import ImageInput

RGB = ImageInput(height=4, width=6, color="rgb", mean=(0.0,) * 3, std=(1.0,) * 3)
GREY = ImageInput(height=4, width=6, color="grey", mean=(0.0,), std=(1.0,))


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(mode: str, color: object) -> Image.Image:
    return Image.new(mode, (6, 4), color)


def corner(spec: ImageInput, content: bytes) -> list[int]:
    pixels = decode_image(spec, content)
    assert pixels.shape == spec.shape and pixels.dtype == np.uint8
    return pixels[:, 0, 0].tolist()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "JPEG", "WEBP"])
def test_every_format_of_the_list(kind: str) -> None:
    got = corner(RGB, saved(plain("RGB", (250, 10, 20)), kind))
    assert np.abs(np.array(got) - [250, 10, 20]).max() <= 5


@pytest.mark.parametrize(
    ("image", "rgb", "grey"),
    [
        (plain("L", 77), [77] * 3, [77]),
        (plain("RGB", (255, 0, 0)), [255, 0, 0], [76]),
        (plain("1", 1), [255] * 3, [255]),
        (plain("RGBA", (255, 0, 0, 255)), [255, 0, 0], [76]),
        (plain("RGBA", (0, 0, 0, 0)), [255] * 3, [255]),
        (plain("RGBA", (0, 0, 0, 51)), [204] * 3, [204]),
        (plain("LA", (0, 0)), [255] * 3, [255]),
        (plain("RGB", (0, 0, 255)).quantize(4), [0, 0, 255], [29]),
    ],
)
def test_modes_are_converted(image: Image.Image, rgb: list[int], grey: list[int]) -> None:
    content = saved(image)
    assert corner(RGB, content) == rgb
    assert corner(GREY, content) == grey


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (65535, 255), (32768, 128), (300, 1)])
def test_16_bit_grey_is_scaled_not_clipped(value: int, expected: int) -> None:
    image = Image.fromarray(np.full((4, 6), value, dtype=np.uint16))
    assert corner(GREY, saved(image)) == [expected]
    assert corner(RGB, saved(image)) == [expected] * 3
    assert corner(GREY, saved(image, "TIFF")) == [expected]


def test_a_transparent_colour_of_a_palette_or_a_png_shows_white() -> None:
    palette = plain("RGB", (0, 0, 255)).quantize(2)
    assert corner(RGB, saved(palette, transparency=0)) == [255] * 3
    assert corner(RGB, saved(plain("RGB", (1, 2, 3)), transparency=(1, 2, 3))) == [255] * 3


def test_a_photo_on_its_side_is_turned_upright() -> None:
    image = Image.new("L", (4, 6), 0)
    image.paste(200, (0, 0, 4, 1))  # a bright first row, in the file
    exif = Image.Exif()
    exif[0x0112] = 6  # the file's top is the picture's right
    pixels = decode_image(GREY, saved(image, exif=exif))[0]
    assert pixels[:, -1].tolist() == [200] * 4 and pixels[:, 0].tolist() == [0] * 4


def test_resizing_averages_what_it_shrinks() -> None:
    board = np.indices((40, 60)).sum(axis=0) % 2 * 255
    pixels = decode_image(GREY, saved(Image.fromarray(board.astype(np.uint8))))
    assert np.abs(pixels.astype(int) - 127).max() < 12


def test_the_first_frame_of_an_animation() -> None:
    frames = [plain("L", 10), plain("L", 200)]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert corner(GREY, content) == [10]


def bomb(width: int, height: int) -> bytes:
    """A valid PNG header that claims any size, in 60 bytes."""

    def part(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", header)
        + part(b"IDAT", zlib.compress(b""))
        + part(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(8193, 8192), (10_000, 10_000), (60_000, 60_000)])
def test_a_decompression_bomb_is_not_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(DataError):
        decode_image(RGB, bomb(*size))
    if size[0] < 9000:
        with pytest.raises(DataError, match="megapixels"):
            decode_image(RGB, bomb(*size))


WHOLE = saved(Image.fromarray(np.arange(24 * 16 * 3, dtype=np.uint8).reshape(16, 24, 3)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    random = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    content = saved(Image.fromarray(random), kind)
    with pytest.raises(DataError, match="not a readable image"):
        decode_image(RGB, content[: len(content) // 2])


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\nnonsense", b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="not a readable image") as caught:
        decode_image(RGB, content)
    assert "PNG" in caught.value.mend


def test_formats_off_the_list_are_refused() -> None:
    with pytest.raises(DataError, match="none of PNG"):
        decode_image(RGB, saved(plain("RGB", "red"), "PPM"))


def test_floats_have_no_known_black_and_white() -> None:
    image = Image.fromarray(np.ones((4, 6), dtype=np.float32))
    with pytest.raises(DataError, match="32-bit floats"):
        decode_image(RGB, saved(image, "TIFF"))


@given(st.data())
def test_damaged_bytes_give_pixels_or_a_data_error_and_nothing_else(data: st.DataObject) -> None:
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode_image(RGB, bytes(content)).shape == RGB.shape
    except DataError as error:
        assert error.what


def test_decoding_does_not_depend_on_the_thread(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: decode_image(RGB, WHOLE), range(32)))
    assert all((result == results[0]).all() for result in results)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
@pytest.mark.parametrize("late", [False, True])
def test_every_way_of_saying_how_a_picture_is_held(kind: str, turn: int, late: bool) -> None:
    """Also in a PNG that says it after its pixels: the shortcut for silent files must not miss it."""
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    exif = Image.Exif()
    exif[0x0112] = turn
    content = saved(image, kind, exif=exif)
    if late and kind == "PNG":
        start = content.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(content[start : start + 4])
        content = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    with Image.open(io.BytesIO(content)) as opened:
        upright = ImageOps.exif_transpose(opened).convert("L")
    expected = np.asarray(upright.resize((6, 4), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decode_image(GREY, content)[0], expected)


def test_an_orientation_in_xmp_counts() -> None:
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "<tiff:Orientation>3</tiff:Orientation>")
    pixels = decode_image(GREY, saved(image, pnginfo=text))[0]
    np.testing.assert_array_equal(pixels, np.asarray(image)[::-1, ::-1])


@pytest.mark.parametrize("mode", ["RGB", "L"])
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    level=st.integers(0, 9),
    seed=st.integers(0, 99),
    broken=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=2),
    cut=st.one_of(st.none(), st.integers(0, 10**6)),
)
def test_the_short_way_for_plain_png_decides_as_the_long_one(
    mode: Literal["RGB", "L"],
    size: tuple[int, int],
    level: int,
    seed: int,
    broken: list[tuple[int, int]],
    cut: int | None,
) -> None:
    shape = (size[1], size[0], 3) if mode == "RGB" else size[::-1]
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    content = bytearray(saved(Image.fromarray(pixels), compress_level=level))
    for place, value in broken:
        content[place % len(content)] = value
    got = told(bytes(content if cut is None else content[: cut % len(content)]), mode, size)
    # A chunk that says nothing, in front of the pixels, leads the long way.
    content[33:33] = b"\0\0\0\0noTe" + zlib.crc32(b"noTe").to_bytes(4, "big")
    if cut is None:
        assert told(bytes(content), mode, size) == got
    if cut is None and not broken:
        assert got == pixels.tobytes()


def told(content: bytes, mode: Literal["RGB", "L"], size: tuple[int, int]) -> bytes | None:
    """The pixels, or None where the file is refused."""
    try:
        return decode_pixels(content, mode, size)
    except DataError:
        return None
