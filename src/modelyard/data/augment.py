"""Training samples varied: mirrored, cropped, coloured, with noise and gaps; whole batches at once.

What happens to a sample is drawn from (seed, epoch, sample) alone, by counter (``data/draws.py``), so
it does not depend on the number of workers, on which of them holds it, or on where a run was
resumed. Each kind of change has draws of its own: turning one on leaves the others as they were.
Blending two samples is in ``data/mixing.py``.
"""

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from modelyard.data.draws import Keys, normal, pieces, uniform
from modelyard.spec.errors import Mistake
from modelyard.spec.signature import (
    BooleanColumn,
    CategoricalColumn,
    ImageInput,
    MixedInput,
    NaturalInput,
    TableInput,
    TensorInput,
    TextInput,
)
from modelyard.spec.training import AugmentSection

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Samples = Bytes | Floats
_FLIP, _CROP, _COLOR = 0, 1, 3
"""First draw of each; crop takes two, colour three."""
_NOISE, _MASK = 2**32, 2**33
_BLOCK = 2**17
"""Numbers in a block of pictures that are worked on together."""
_LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue: Rec. ITU-R BT.601."""


def augment_mistakes(
    section: AugmentSection, spec: NaturalInput, *, classes: bool
) -> Iterator[Mistake]:
    """What ``[train.augment]`` asks that cannot be done to such samples; ``classes``: the task has classes."""
    kinds: dict[type[NaturalInput], str] = {
        ImageInput: "images",
        TableInput: "tables",
        TensorInput: "arrays",
        TextInput: "texts",
        MixedInput: "samples of several parts",
    }
    kind, numbers = kinds[type(spec)], isinstance(spec, TableInput | TensorInput)
    shape = () if isinstance(spec, MixedInput) else spec.shape
    pictures = len(shape) == 3
    place = "images or arrays of shape (channels, height, width)"
    works = {
        "flip": (pictures, place),
        "crop": (pictures, place),
        "color": (isinstance(spec, ImageInput), "images"),
        "mixup": (isinstance(spec, ImageInput | TensorInput), "images or arrays"),
        "cutmix": (pictures, place),
        "noise": (numbers, "tables or arrays"),
        "mask": (numbers, "tables or arrays"),
    }
    for name, (works_here, needs) in works.items():
        if not getattr(section, name):
            continue
        where = f"train.augment.{name}"
        if not works_here:
            yield Mistake(where, f"is not for {kind}", needs, "", "yard.toml")
        elif name in ("mixup", "cutmix") and not classes:
            yield Mistake(where, "blends labels, which a regression has not", "0", "", "yard.toml")
    if pictures and section.crop >= min(shape[-2:]):
        yield Mistake(
            "train.augment.crop",
            f"a border of {section.crop} pixels could leave nothing of a picture of "
            f"{shape[-2]} x {shape[-1]}",
            f"less than {min(shape[-2:])}",
            "",
            "yard.toml",
        )


class Augmentation:
    """What one training does to its samples; see ``[train.augment]``."""

    def __init__(self, section: AugmentSection, spec: NaturalInput) -> None:
        self._section = section
        self._table = _Features(spec) if isinstance(spec, TableInput) else None
        # Black would be a hard edge: the border has the mean colour, which is 0 in model form.
        self._border: Samples = np.zeros((1, 1, 1), np.float32)
        if isinstance(spec, ImageInput):
            self._border = np.rint(np.array(spec.mean) * 255).astype(np.uint8).reshape(-1, 1, 1)

    @property
    def active(self) -> bool:
        """False where nothing is done to single samples."""
        asked = self._section
        return bool(asked.flip or asked.crop or asked.color or asked.noise or asked.mask)

    def apply(self, stored: Samples, keys: Keys) -> Samples:
        """Samples (n, ...) as ``Split.stored`` gives them -> the same form; ``stored`` may be changed.

        ``keys`` are ``draws.sample_keys`` (n,) of the samples in their epochs.
        """
        asked, samples = self._section, stored
        if asked.crop:
            samples = crop(samples, keys, asked.crop, self._border)
        elif not samples.flags.writeable:
            samples = samples.copy()
        if asked.flip:
            flip(samples, keys, asked.flip)
        if asked.color:
            color(samples, keys, asked.color)
        if asked.noise:
            self._add_noise(samples, keys)
        if asked.mask:
            self._mask(samples, keys)
        return samples

    def _add_noise(self, samples: Samples, keys: Keys) -> None:
        flat = samples.reshape(len(samples), -1)
        columns = slice(None) if self._table is None else self._table.numbers
        noise = normal(keys, _NOISE, flat[:, columns].shape[1])
        flat[:, columns] += noise * np.float32(self._section.noise)

    def _mask(self, samples: Samples, keys: Keys) -> None:
        flat = samples.reshape(len(samples), -1)
        count = flat.shape[1] if self._table is None else self._table.columns
        hidden = pieces(keys, _MASK, count) < round(self._section.mask * 2**16)
        if self._table is None:
            flat[hidden] = 0
        else:
            np.copyto(flat, self._table.missing, where=hidden[:, self._table.owner])


def crop(samples: Samples, keys: Keys, border: int, color: Samples) -> Samples:
    """A border of ``color`` (channels, 1, 1) around each, then a window of the old size anywhere in it.

    As in He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016, section 4.2.
    """
    count, channels, height, width = samples.shape
    shape = (count, channels, height + 2 * border, width + 2 * border)
    framed = np.empty(shape, samples.dtype)
    framed[:] = color
    framed[:, :, border:-border, border:-border] = samples
    places = (uniform(keys, _CROP, 2) * (2 * border + 1)).astype(np.int64)
    windows = sliding_window_view(framed, (height, width), axis=(2, 3))
    result: Samples = windows[np.arange(count), :, places[:, 0], places[:, 1]]
    return result


def flip(samples: Samples, keys: Keys, probability: float) -> None:
    """Mirror some, left for right, in place."""
    chosen = np.flatnonzero(uniform(keys, _FLIP)[:, 0] < probability)
    samples[chosen] = samples[chosen, ..., ::-1]


def color(samples: Samples, keys: Keys, strength: float) -> None:
    """Vary brightness b, contrast c and saturation s of uint8 images, in place.

    One after the other, as is usual (Krizhevsky et al., NIPS 2012, varied colours first):
    ``b x``, then ``c x + (1 - c) mean luminance``, then ``s x + (1 - s) luminance``. All are linear,
    so they are one formula here, rounded and clipped once.
    """
    factors = 1 + strength * (2 * uniform(keys, _COLOR, 3) - 1)
    bright, contrast, saturation = factors.T
    channels, height, width = samples.shape[1:]
    weights = _LUMINANCE if channels == 3 else (1.0,)
    totals = samples.sum(axis=(2, 3), dtype=np.int64)  # of integers: exact, whatever the order
    lights = [totals[:, channel] * weight for channel, weight in enumerate(weights)]
    mean = sum(lights[1:], lights[0]) / (height * width)
    scale = _column(bright * contrast)
    shift = _column((1 - contrast) * bright * mean + 0.5)  # the half rounds
    if channels == 3:
        tint, scale = scale * _column(1 - saturation), scale * _column(saturation)
    for part in blocks(samples):
        values = samples[part].astype(np.float32)
        if channels == 3:
            grey = values[:, 0] * np.float32(weights[0])
            for channel in (1, 2):
                grey += values[:, channel] * np.float32(weights[channel])
            grey *= tint[part, 0]
            grey += shift[part, 0]
            values *= scale[part]
            values += grey[:, None]
        else:
            values *= scale[part]
            values += shift[part]
        np.clip(values, 0, 255, out=values)
        np.copyto(samples[part], values, casting="unsafe")  # cuts off what is behind the point


def blocks(samples: Samples) -> Iterator[slice]:
    """Parts of a batch so small that what is computed in between stays in the processor's cache."""
    step = max(1, _BLOCK // max(1, samples[:1].size))
    for first in range(0, len(samples), step):
        yield slice(first, first + step)


def _column(values: NDArray[np.float64]) -> Floats:
    return values.astype(np.float32).reshape(-1, 1, 1, 1)


class _Features:
    """Which features of a table's row are numbers, whose they are, and what stands for a missing value."""

    def __init__(self, spec: TableInput) -> None:
        owner: list[int] = []
        missing: list[float] = []
        numbers: list[int] = []
        for place, column in enumerate(spec.columns):
            owner += [place] * column.width
            if isinstance(column, CategoricalColumn):
                missing += [0.0] * column.width
            elif isinstance(column, BooleanColumn):
                missing.append(column.fill)
            else:
                numbers.append(len(missing))
                missing.append((column.fill - column.mean) / column.std)
                missing += [1.0] * (column.width - 1)
        self.columns = len(spec.columns)
        self.owner = np.array(owner, dtype=np.int64)
        self.missing = np.array(missing, dtype=np.float32)
        self.numbers = np.array(numbers, dtype=np.int64)
