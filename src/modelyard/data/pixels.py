"""An image file as bytes becomes pixels, by Pillow alone; hostile and broken files are refused.

Nothing heavier is imported, since processes that only decode (data/decoder.py) must be there at once.
"""

import io
import struct
import zlib

from PIL import Image, ImageOps

from modelyard.spec.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
"""What is decoded; of an animation the first frame. Pillow knows more, each one more way in."""
MEDIA_TYPES = ("image/png", "image/jpeg", "image/bmp", "image/gif", "image/webp", "image/tiff")
MAX_PIXELS = 64 * 1024 * 1024
"""A small file can claim any size: above this it is not decoded (a decompression bomb)."""
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_TELL_ORIENTATION = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})
"""Where Pillow looks for an orientation in a PNG or JPEG file."""


def decode_pixels(content: bytes, mode: str, size: tuple[int, int]) -> bytes:
    """One image file -> its pixels in ``mode`` (RGB or L), row by row; ``size`` is (width, height).

    Upright, converted, resized (bilinear, antialiased). Raises DataError for what is no image, is
    truncated, or has more than ``MAX_PIXELS`` pixels.
    """
    try:
        if (plain := _plain_png(content, mode, size)) is not None:
            return plain
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"the image has {image.width} × {image.height} pixels, more than {MAX_PIXELS // 2**20} megapixels",
                    "make it smaller first",
                )
            upright = ImageOps.exif_transpose(image) if _may_be_turned(image) else image
            converted = _convert(upright, mode)
            if converted.size != size:
                converted = converted.resize(size, Image.Resampling.BILINEAR)
            return converted.tobytes()
    except (DataError, MemoryError):
        raise
    except (
        Exception
    ) as error:  # decoders raise anything on broken bytes: struct.error, SyntaxError, zlib.error, …
        raise DataError(
            f"not a readable image: {_reason(error, content)}",
            f"give a whole {', '.join(FORMATS)} file",
        ) from error


def _plain_png(content: bytes, mode: str, size: tuple[int, int]) -> bytes | None:
    """Of a PNG that has nothing but pixels, and these as they are asked for: the same, a quarter faster.

    None for any other, and for one that is damaged: the long way says what is wrong with it.
    """
    width, height = size
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2 if mode == "RGB" else 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + zlib.crc32(header).to_bytes(4, "big")
    if not content.startswith(start) or not content.endswith(_PNG_END):
        return None
    at, parts = len(start), []
    while at < len(content) - len(_PNG_END):
        data = at + 8
        after = data + int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : data] != b"IDAT":
            return None
        parts.append(content[data:after])
        at = after + 4
    if at != len(content) - len(_PNG_END):
        return None
    try:
        return Image.frombytes(mode, size, b"".join(parts), "zip", mode).tobytes()
    except ValueError:
        return None


def _may_be_turned(image: Image.Image) -> bool:
    """False where the file says nothing about how it is to be held, which spares a copy."""
    image.load()  # a PNG may say it after its pixels
    return image.format not in ("PNG", "JPEG") or not _TELL_ORIENTATION.isdisjoint(image.info)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Any of Pillow's modes to ``RGB`` or ``L``; what is transparent shows white."""
    if image.mode == "F":
        raise DataError(
            "the image holds 32-bit floats, whose black and white are not known",
            "save it with 8 or 16 bits a channel",
        )
    if image.mode == "I" or image.mode.startswith("I;"):
        image = _from_16_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image if image.mode == mode else image.convert(mode)


def _from_16_bit(image: Image.Image) -> Image.Image:
    """16-bit grey to 8-bit by scale (Pillow's own conversion clips at 255)."""
    import numpy as np

    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise DataError(
            "the image holds 32-bit integers, whose black and white are not known",
            "save it with 8 or 16 bits a channel",
        )
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _reason(error: Exception, content: bytes) -> str:
    if not content:
        return "it is empty"
    if type(error).__name__ == "UnidentifiedImageError":
        return f"none of {', '.join(FORMATS)}"
    return str(error) or type(error).__name__
