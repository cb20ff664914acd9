"""The image template's data: scikit-learn's 1,797 handwritten digits as PNG files."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from modelyard.templates import copy_files


def write(folder: Path, name: str) -> None:
    """Fill ``folder``: ``data/<digit>/<index>.png``, 8-bit grey, 8 × 8 pixels, and the text files."""
    copy_files("image-classification", folder, name)
    digits = load_digits()
    # The set counts ink from 0 to 16 per pixel; PNG has 0 to 255.
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for index, (image, digit) in enumerate(zip(pixels, digits.target, strict=True)):
        file = folder / "data" / str(digit) / f"{index:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
