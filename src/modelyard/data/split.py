"""Which samples are for training, for validation and for the test: seeded, stratified, leak-free."""

import numpy as np
from numpy.typing import NDArray

from modelyard.spec.errors import DataError

SPLITS = ("train", "validation", "test")
Positions = NDArray[np.int64]


def split(
    strata: NDArray[np.int64],
    digests: NDArray[np.uint64],
    *,
    validation: float,
    test: float,
    seed: int,
) -> dict[str, Positions]:
    """Sorted positions of ``train``, ``validation`` and ``test``; together all samples, none twice.

    ``strata`` (n,) are class numbers (all 0 for a regression). Samples with equal ``digests`` (n,)
    stay together. Each stratum keeps the asked shares as nearly as its groups of equal samples
    allow; it has a sample in train, and one in the others where it has three groups or more. The
    choice depends on the seed and on what the samples contain, not on their order.
    """
    if validation + test >= 1:
        raise DataError(
            f"validation {validation} and test {test} leave nothing for training",
            "make data.split.validation + data.split.test smaller than 1",
        )
    first, group, sizes = _groups(digests)
    stratum = _rarest_stratum(strata, group, len(first))
    order = np.lexsort((_mix(digests[first], seed), -sizes, stratum))
    owner = np.zeros(len(first), dtype=np.int64)
    cuts = np.flatnonzero(np.diff(stratum[order])) + 1
    for members in np.split(order, cuts):
        owner[members] = _share_out(sizes[members], validation, test)
    _put_every_stratum_in_train(owner, group, strata)
    chosen = owner[group]
    return {name: np.flatnonzero(chosen == number) for number, name in enumerate(SPLITS)}


def rejoin(splits: dict[str, Positions], digests: NDArray[np.uint64]) -> dict[str, Positions]:
    """Give every group of equal samples wholly to the first split that holds one of them."""
    owner = np.zeros(len(digests), dtype=np.int64)
    for number, name in enumerate(SPLITS):
        owner[splits[name]] = number
    first, group, _ = _groups(digests)
    lowest = np.full(len(first), len(SPLITS), dtype=np.int64)
    np.minimum.at(lowest, group, owner)
    chosen = lowest[group]
    return {name: np.flatnonzero(chosen == number) for number, name in enumerate(SPLITS)}


def _groups(
    digests: NDArray[np.uint64],
) -> tuple[Positions, Positions, Positions]:
    """Groups of equal samples: first sample of each, group of each sample, size of each."""
    _, first, group, sizes = np.unique(
        digests, return_index=True, return_inverse=True, return_counts=True
    )
    return first.astype(np.int64), group.reshape(-1).astype(np.int64), sizes.astype(np.int64)


def _rarest_stratum(strata: NDArray[np.int64], group: Positions, groups: int) -> Positions:
    """Equal samples with different labels count for the rarest class, which needs them most."""
    rarity = np.bincount(strata)[strata]
    order = np.lexsort((strata, rarity, group))
    result = np.zeros(groups, dtype=np.int64)
    result[group[order][::-1]] = strata[order][::-1]  # the first of each group is written last
    return result


def _mix(digests: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A hash of (seed, digest): the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        z = digests + np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _share_out(sizes: Positions, validation: float, test: float) -> Positions:
    """Split number of each group, largest first: always to the split that lacks most samples."""
    total = int(sizes.sum())
    wanted = [number for number, share in ((1, validation), (2, test)) if share > 0]
    lacking = [0.0, 0.0, 0.0]
    for number, share in ((1, validation), (2, test)):
        lacking[number] = max(1.0, float(round(share * total))) if share > 0 else -1.0
    lacking[0] = max(1.0, total - sum(lacking[number] for number in wanted))
    owner = np.zeros(len(sizes), dtype=np.int64)
    choices = (0, *wanted)
    for place, size in enumerate(sizes.tolist()):
        chosen = max(choices, key=lacking.__getitem__)
        owner[place] = chosen
        lacking[chosen] -= size
    if len(sizes) >= len(choices):
        _fill_empty(owner, choices)
    return owner


def _fill_empty(owner: Positions, choices: tuple[int, ...]) -> None:
    """Large groups can starve a split: it gets the smallest group of the split that has most."""
    for number in choices:
        if not (owner == number).any():
            richest = int(np.bincount(owner, minlength=3).argmax())
            owner[np.flatnonzero(owner == richest)[-1]] = number


def _put_every_stratum_in_train(
    owner: Positions, group: Positions, strata: NDArray[np.int64]
) -> None:
    """A class whose every sample has a twin under another label may be missing from train."""
    absent = set(np.unique(strata).tolist()) - set(np.unique(strata[owner[group] == 0]).tolist())
    for stratum in sorted(absent):
        owner[group[np.flatnonzero(strata == stratum)[0]]] = 0
