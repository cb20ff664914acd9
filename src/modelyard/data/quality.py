"""The quality report: what is suspicious in the data, said before training."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from modelyard.data.split import SPLITS
from modelyard.spec.records import Finding

_IMBALANCE = 10
_SMALL_CLASS = 10
_RARE = 0.1
"""A label with less than this share of a similar label's samples may be a slip of the pen."""
_EXAMPLES = 5

Namer = Callable[[int], str]
"""Position in the dataset -> where the sample stands in the source."""


def unreadable(count: int, examples: Sequence[str]) -> tuple[Finding, ...]:
    """Samples that were passed over; ``examples`` say where and why."""
    if not count:
        return ()
    return (
        Finding(
            kind="unreadable",
            severity="warning",
            message=f"{_counted(count, 'sample')} cannot be read and "
            f"{'is' if count == 1 else 'are'} left out",
            examples=tuple(examples[:_EXAMPLES]),
        ),
    )


def unlabelled(dropped: int) -> tuple[Finding, ...]:
    """Rows without a label, dropped because the project says so."""
    if not dropped:
        return ()
    message = f"{_counted(dropped, 'row')} without a label left out"
    return (Finding(kind="missing", severity="warning", message=message),)


def repeated(
    digests: NDArray[np.uint64], targets: NDArray[np.generic], name: Namer
) -> tuple[Finding, ...]:
    """Samples with the same content: with the same target a duplicate, else a conflict.

    ``digests`` and ``targets`` are (n,).
    """
    order = np.argsort(digests, kind="stable")
    starts = np.flatnonzero(
        np.diff(digests[order].astype(np.uint64), prepend=~digests[order[:1]]) != 0
    )
    stops = np.append(starts[1:], len(order))
    many = np.flatnonzero(stops - starts > 1)  # most samples are alone, and there may be millions
    groups = [order[starts[i] : stops[i]] for i in many]
    groups.sort(key=lambda group: (-len(group), int(group[0])))
    conflicts = [group for group in groups if len(np.unique(targets[group])) > 1]
    extra = sum(len(group) - 1 for group in groups)
    findings = []
    if groups:
        findings.append(
            Finding(
                kind="duplicate",
                severity="note" if extra < 0.05 * len(digests) else "warning",
                message=f"{_counted(extra, 'sample')} repeat{'s' if extra == 1 else ''} another one exactly; "
                "equal samples are kept in one split",
                examples=_names(groups, name),
            )
        )
    if conflicts:
        count = sum(len(group) for group in conflicts)
        findings.append(
            Finding(
                kind="conflict",
                severity="warning",
                message=f"{_counted(count, 'sample')} have the same content as another one but a different target",
                examples=_names(conflicts, name),
            )
        )
    return tuple(findings)


def leaks(
    digests: NDArray[np.uint64], splits: Mapping[str, NDArray[np.int64]]
) -> tuple[Finding, ...]:
    """Samples that stand in two splits: checked although the split is made so that there are none."""
    seen: list[NDArray[np.uint64]] = []
    shared = 0
    for name in SPLITS:
        own = np.unique(digests[splits[name]])
        shared += sum(len(np.intersect1d(own, other, assume_unique=True)) for other in seen)
        seen.append(own)
    return (
        Finding(
            kind="leak",
            severity="error" if shared else "note",
            message=f"{shared or 'no'} sample{'' if shared == 1 else 's'} in more than one split (compared by content)",
        ),
    )


def classes(names: Sequence[str], targets: NDArray[np.int64]) -> tuple[Finding, ...]:
    """Imbalance, very small classes and labels that look misspelt. ``targets`` (n,) are class numbers."""
    counts = dict(zip(names, np.bincount(targets, minlength=len(names)).tolist(), strict=True))
    return (*_imbalance(counts), *_small(counts), *_typos(counts))


def _imbalance(counts: Mapping[str, int]) -> list[Finding]:
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] <= _IMBALANCE * counts[least]:
        return []
    message = (
        f"class {most!r} has {counts[most]} samples, class {least!r} {counts[least]}: "
        f"{counts[most] / counts[least]:.0f} times as many; look at balanced_accuracy, not at accuracy"
    )
    return [Finding(kind="imbalance", severity="warning", message=message)]


def _small(counts: Mapping[str, int]) -> list[Finding]:
    small = [name for name in counts if counts[name] < _SMALL_CLASS]
    if not small:
        return []
    return [
        Finding(
            kind="small-class",
            severity="warning",
            message=f"{len(small)} class{'es have' if len(small) > 1 else ' has'} fewer than {_SMALL_CLASS} samples",
            examples=tuple(f"{name}: {counts[name]}" for name in small[:_EXAMPLES]),
        )
    ]


def _typos(counts: Mapping[str, int]) -> list[Finding]:
    """Labels that differ only in case or spaces, and rare ones a letter or two from a frequent one."""
    findings = []
    if len(counts) > 2000:  # pairs grow with the square; so many classes are no hand-written labels
        return []
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    for place, rare in enumerate(ordered):
        for frequent in ordered[:place]:
            if _looks_misspelt(rare, frequent, counts[rare] < _RARE * counts[frequent]):
                message = (
                    f"label {rare!r} ({_counted(counts[rare], 'sample')}) looks like a misspelt "
                    f"{frequent!r} ({counts[frequent]})"
                )
                findings.append(Finding(kind="typo", severity="warning", message=message))
                break
    return findings


def _looks_misspelt(rare: str, frequent: str, is_rare: bool) -> bool:
    if "".join(rare.split()).casefold() == "".join(frequent.split()).casefold():
        return True
    # Numbers and short codes (A1, B2) are near each other by nature.
    if (
        not is_rare
        or min(len(rare), len(frequent)) < 4
        or any(c.isdigit() for c in rare + frequent)
    ):
        return False
    limit = 1 if len(frequent) < 7 else 2
    return edit_distance(rare.casefold(), frequent.casefold(), limit) <= limit


def edit_distance(a: str, b: str, limit: int) -> int:
    """Optimal string alignment: insertions, deletions, replacements and swaps of neighbours.

    Stops at ``limit + 1``.
    """
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        row = [i]
        for j, y in enumerate(b, start=1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        if min(row) > limit:
            return limit + 1
        before, last = last, row
    return last[-1]


def _names(groups: Sequence[NDArray[np.int64]], name: Namer) -> tuple[str, ...]:
    return tuple(
        " = ".join(name(int(position)) for position in group[:3])
        + (f" = … ({len(group)})" if len(group) > 3 else "")
        for group in groups[:_EXAMPLES]
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
