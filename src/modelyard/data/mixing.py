"""Two samples become one: mixup and CutMix, with partners from the whole global batch.

Who is whose partner, and the shares, are drawn from (seed, step) for the global batch, so that every
worker knows them without a word and reads the partners it needs itself.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelyard.data.augment import Samples, blocks
from modelyard.data.draws import number
from modelyard.spec.training import AugmentSection

_OWN_STREAM = 0x6D6978
"""Keeps these draws apart from the order of samples, which is keyed by the seed as well."""
_PARTS = 256
"""Shares are multiples of a 256th: then blending bytes is exact in 16-bit integers."""


@dataclass(frozen=True)
class Mix:
    """What is blended in one global batch of ``size``."""

    partner: NDArray[np.int64]
    """(size,) place in the batch of each sample's partner; may be its own."""
    parts: NDArray[np.int64]
    """(size,) how many 256ths of a sample are its own."""
    centre: NDArray[np.float64] | None
    """(size, 2) in [0, 1): centre of the pasted box; None where whole samples are blended."""


def plan_mix(section: AugmentSection, seed: int, step: int, size: int) -> Mix:
    """The mix of global step ``step``; where both kinds are asked for, each takes half of the steps."""
    key = np.array([number(seed, _OWN_STREAM), step], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    partner = generator.permutation(size)
    boxes = bool(section.cutmix) and (not section.mixup or generator.random() < 0.5)
    alpha = section.cutmix if boxes else section.mixup
    parts = np.rint(generator.beta(alpha, alpha, size) * _PARTS).astype(np.int64)
    return Mix(partner, parts, generator.random((size, 2)) if boxes else None)


def mix(
    own: Samples, other: Samples, plan: Mix, places: NDArray[np.int64]
) -> tuple[Samples, NDArray[np.float32]]:
    """Blend (n, ...) with (n, ...), for these places of the batch -> samples, and own shares (n,)."""
    if plan.centre is None:
        parts = plan.parts[places]
        return mixup(own, other, parts), (parts / _PARTS).astype(np.float32)
    return cutmix(own, other, plan.parts[places], plan.centre[places])


def mixup(own: Samples, other: Samples, parts: NDArray[np.int64]) -> Samples:
    """``p x + (1 - p) y`` (Zhang et al., *mixup: Beyond Empirical Risk Minimization*, ICLR 2018).

    A share for each pair, as in the paper's eq. 1. Bytes stay bytes, rounded to the nearest.
    """
    share = parts.reshape(-1, *[1] * (own.ndim - 1))
    if own.dtype == np.uint8:
        result = np.empty_like(own)
        mine, theirs = share.astype(np.uint16), (_PARTS - share).astype(np.uint16)
        for part in blocks(own):
            blend = np.multiply(own[part], mine[part], dtype=np.uint16)
            blend += np.multiply(other[part], theirs[part], dtype=np.uint16)
            blend += np.uint16(_PARTS // 2)
            blend >>= np.uint16(8)
            result[part] = blend
        return result
    weight = (share / _PARTS).astype(np.float32)
    return own * weight + other * (1 - weight)


def cutmix(
    own: Samples, other: Samples, parts: NDArray[np.int64], centre: NDArray[np.float64]
) -> tuple[Samples, NDArray[np.float32]]:
    """A box of the other picture in place of the own (Yun et al., *CutMix*, ICCV 2019, eq. 1 and 2).

    The box has the picture's proportions and ``1 - p`` of its area; it is cut off at the edges, and
    the share of the label is what is left of the own picture.
    """
    height, width = own.shape[-2:]
    side = np.sqrt(1 - parts / _PARTS)
    top, bottom = _span(centre[:, 0], side, height)
    left, right = _span(centre[:, 1], side, width)
    rows, columns = np.arange(height), np.arange(width)
    down = (rows >= top[:, None]) & (rows < bottom[:, None])
    across = (columns >= left[:, None]) & (columns < right[:, None])
    box = down[:, None, :, None] & across[:, None, None, :]
    area = (bottom - top) * (right - left)
    weight = (1 - area / (height * width)).astype(np.float32)
    blend = own.copy()
    np.copyto(blend, other, where=box)
    return blend, weight


def _span(
    centre: NDArray[np.float64], side: NDArray[np.float64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and one past the last pixel of the box along one side of the picture."""
    middle = (centre * length).astype(np.int64)
    half = (side * length / 2).astype(np.int64)
    return np.maximum(middle - half, 0), np.minimum(middle + half, length)
