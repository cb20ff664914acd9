"""The training data's profile: the baseline that live inputs are compared with later."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelyard.spec.records import Record, TaskSpec

BINS = 21
_CATEGORIES = 100
_IMAGE_BINS = 32


class NumericProfile(msgspec.Struct, frozen=True, kw_only=True, tag="numeric"):
    """Numbers of one feature. ``counts[i]`` values lie from ``edges[i]`` up to ``edges[i + 1]``.

    Edges are quantiles, so that each bin holds about as many values; the last bin includes its end.
    """

    name: str
    count: int
    """Values that are there."""
    missing: int
    mean: float
    std: float
    min: float
    max: float
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()


class CategoricalProfile(msgspec.Struct, frozen=True, kw_only=True, tag="categorical"):
    """Words of one feature; the most frequent ones, ``other`` the rest together."""

    name: str
    count: int
    missing: int
    counts: dict[str, int]
    other: int = 0


class ImageProfile(msgspec.Struct, frozen=True, kw_only=True, tag="image"):
    """Pixel values 0–255 by channel, and the mean brightness of each image, in 32 equal bins."""

    name: str
    count: int
    """Images."""
    mean: tuple[float, ...]
    """By channel, of values scaled to 0–1, as the model's normalisation has them."""
    std: tuple[float, ...]
    pixels: tuple[tuple[int, ...], ...]
    """By channel."""
    brightness: tuple[int, ...]


FeatureProfile = NumericProfile | CategoricalProfile | ImageProfile


class Profile(Record, frozen=True, kw_only=True):
    """What the training split looks like."""

    samples: int
    features: tuple[FeatureProfile, ...]
    target: NumericProfile | CategoricalProfile


def numeric(name: str, values: NDArray[Any]) -> NumericProfile:
    """Profile of (n,) numbers, NaN where they are missing."""
    numbers = np.asarray(values, dtype=np.float64)
    present = numbers[~np.isnan(numbers)]
    missing = len(numbers) - len(present)
    if not len(present):
        return NumericProfile(
            name=name, count=0, missing=missing, mean=0.0, std=0.0, min=0.0, max=0.0
        )
    edges = np.unique(np.quantile(present, np.linspace(0, 1, BINS + 1)))
    if len(edges) == 1:
        edges = np.array([edges[0], edges[0]])
        counts = np.array([len(present)])
    else:
        counts = np.histogram(present, bins=edges)[0]
    return NumericProfile(
        name=name,
        count=len(present),
        missing=missing,
        mean=float(present.mean()),
        std=float(present.std()),
        min=float(present.min()),
        max=float(present.max()),
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
    )


def categorical(name: str, codes: NDArray[Any], words: Sequence[str]) -> CategoricalProfile:
    """Profile of (n,) places in ``words``, -1 where they are missing."""
    present = codes[codes >= 0].astype(np.int64)
    return categorical_of(name, np.bincount(present, minlength=len(words)), len(codes), words)


def categorical_of(
    name: str, totals: NDArray[np.int64], rows: int, words: Sequence[str]
) -> CategoricalProfile:
    """The same from how often each word occurs in ``rows`` rows."""
    top = np.argsort(-totals[: len(words)], kind="stable")[:_CATEGORIES]
    counts = {words[int(place)]: int(totals[place]) for place in top if totals[place]}
    present = int(totals.sum())
    return CategoricalProfile(
        name=name,
        count=present,
        missing=rows - present,
        counts=counts,
        other=present - sum(counts.values()),
    )


class ImageCounts:
    """Adds up pixel values chunk by chunk; exact, because it counts."""

    def __init__(self, channels: int) -> None:
        self.images = 0
        self.pixels = np.zeros((channels, 256), dtype=np.int64)
        self.brightness = np.zeros(_IMAGE_BINS, dtype=np.int64)

    def add(self, images: NDArray[np.uint8]) -> None:
        """uint8 (n, channels, height, width)."""
        self.images += len(images)
        for channel in range(len(self.pixels)):
            self.pixels[channel] += np.bincount(images[:, channel].ravel(), minlength=256)
        means = images.reshape(len(images), -1).mean(axis=1)
        self.brightness += np.histogram(means, bins=_IMAGE_BINS, range=(0, 256))[0]

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, of values scaled to 0–1."""
        values = np.arange(256) / 255
        totals = np.maximum(self.pixels.sum(axis=1), 1)
        mean = self.pixels @ values / totals
        variance = np.maximum(self.pixels @ values**2 / totals - mean**2, 0)
        return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())

    def profile(self, name: str) -> ImageProfile:
        mean, std = self.moments()
        pixels = self.pixels.reshape(len(self.pixels), _IMAGE_BINS, -1).sum(axis=2)
        return ImageProfile(
            name=name,
            count=self.images,
            mean=mean,
            std=std,
            pixels=tuple(tuple(row) for row in pixels.tolist()),
            brightness=tuple(self.brightness.tolist()),
        )


def target_profile(task: TaskSpec, targets: NDArray[Any]) -> NumericProfile | CategoricalProfile:
    """Profile of encoded targets (n,)."""
    if task.classes:
        return categorical(task.target, targets, task.classes)
    return numeric(task.target, targets)
