"""An image file as bytes becomes the stored form of a sample."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from modelyard.data.pixels import decode_pixels
from modelyard.spec.signature import ImageInput

MODES: dict[str, Literal["RGB", "L"]] = {"rgb": "RGB", "grey": "L"}
"""Pillow's word for each of ours."""


def decode_image(spec: ImageInput, content: bytes) -> NDArray[np.uint8]:
    """One image file -> uint8 ``spec.shape``: upright, converted, resized (bilinear, antialiased).

    Raises DataError for what is no image, is truncated, or has too many pixels.
    """
    pixels = decode_pixels(content, MODES[spec.color], (spec.width, spec.height))
    return np.ascontiguousarray(channels_first(spec, pixels))


def channels_first(spec: ImageInput, pixels: bytes) -> NDArray[np.uint8]:
    """What ``decode_pixels`` gives, as ``spec.shape``."""
    rows = np.frombuffer(pixels, np.uint8).reshape(spec.height, spec.width, spec.channels)
    return rows.transpose(2, 0, 1)
