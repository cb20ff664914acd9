"""Pictures for TensorBoard, drawn with Pillow alone: a few training samples, the confusion matrix."""

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from modelyard.data.dataset import open_split
from modelyard.spec.records import Dataset
from modelyard.spec.signature import ImageInput

SAMPLES = 16
_LEAST_SIDE = 32
_LARGEST_SIDE = 1024
_MOST_NUMBERS = 20


def training_samples(dataset: Dataset) -> Image.Image | None:
    """The first training samples side by side; None where they are no pictures. Raises StoreError."""
    if not isinstance(dataset.input, ImageInput):
        return None
    split = open_split(dataset, "train")
    rows = np.array(split.positions[:SAMPLES])
    tiles = [_tile(stored) for stored in split.stored_inputs(rows)]
    if not tiles:
        return None
    columns = math.ceil(math.sqrt(len(tiles)))
    height, width = tiles[0].height + 2, tiles[0].width + 2
    sheet = Image.new("RGB", (columns * width, math.ceil(len(tiles) / columns) * height), "white")
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (place % columns * width + 1, place // columns * height + 1))
    return sheet


def _tile(stored: NDArray[np.uint8]) -> Image.Image:
    """(channels, height, width) uint8 -> a picture, enlarged where it is tiny."""
    pixels = np.moveaxis(stored, 0, -1)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    times = max(1, _LEAST_SIDE // max(1, min(picture.size)))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)


def confusion_picture(counts: Sequence[Sequence[int]]) -> Image.Image:
    """Rows are true classes, columns predicted; darker is a larger share of the row."""
    matrix = np.array(counts, float)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    cell = max(2, min(40, _LARGEST_SIDE // len(counts)))
    light, dark = np.array([247, 251, 255]), np.array([8, 48, 107])
    colors = (light + shares[..., None] * (dark - light)).round().astype(np.uint8)
    picture = Image.fromarray(colors.repeat(cell, axis=0).repeat(cell, axis=1))
    if len(counts) <= _MOST_NUMBERS:
        pen = ImageDraw.Draw(picture)
        for row, column in np.argwhere(matrix > 0):
            pen.text(
                (column * cell + cell // 2, row * cell + cell // 2),
                str(int(matrix[row, column])),
                anchor="mm",
                fill="white" if shares[row, column] > 0.5 else "black",
            )
    return picture


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
