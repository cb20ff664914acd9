"""Reads a source once and lays it out for training: checked, split, fitted, in memory-mappable arrays.

The folder::

    dataset.json                           the Dataset record, written last
    inputs.npy                             uint8 (n, c, h, w), float32 (n, …) or int32 (n, length), stored form
    inputs.bin, places.npy                 in its place where files are kept as they came: see packed.py
    targets.npy                            int64 or float32 (n,)
    train.npy, validation.npy, test.npy    int64 positions in the two above
    profile.json                           Profile of the training split
    samples/0.png, … or 0.json, …          up to 8 test samples as they came
    samples/truths.json                    their true labels as text
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelyard.data import quality
from modelyard.data.digest import digest_texts, file_digests
from modelyard.data.material import Material, Read, open_material
from modelyard.data.npy import write_array
from modelyard.data.profile import Profile, target_profile
from modelyard.data.sources.base import Lost, Source, refuse_too_many, told
from modelyard.data.split import SPLITS, Positions, rejoin, split
from modelyard.data.targets import check_task, labelled_rows, make_task, truth_text
from modelyard.spec.project import Project
from modelyard.spec.records import Dataset, Finding, TaskSpec
from modelyard.spec.signature import NaturalInput
from modelyard.spec.urls import is_url, printable

Say = Callable[[str], None]
_SAMPLES = 8
_MEND = "replace or delete them"


@dataclass(frozen=True)
class Samples:
    """What was read: where each sample stands in the source, and what it is to be."""

    source: Source
    read: Read
    lost: tuple[Lost, ...]
    dropped: int
    """Rows without a label."""
    task: TaskSpec
    targets: NDArray[np.generic]

    def name(self, position: int) -> str:
        return self.source.name(int(self.read.rows[position]))


def make_dataset(
    project: Project, source: Source, identifier: str, folder: Path, ledger: Path, say: Say
) -> Dataset:
    """Fill ``folder`` with all but dataset.json, and return that record (its ``folder`` is still empty).

    Raises DataError, UsageError, OSError.
    """
    check_task(project)
    material = open_material(source, project.data, folder)
    samples = _read(project, source, material, say)
    splits = _split(project, samples)
    say("fitting and encoding")
    spec = material.fit(splits["train"])
    stored = material.write(spec)
    # Raw forms that differ can be equal once they are scaled: those must not cross splits either.
    splits = rejoin(splits, stored)
    write_array(folder / "targets.npy", samples.targets)
    for name in SPLITS:
        write_array(folder / f"{name}.npy", splits[name])
    profile = Profile(
        samples=len(splits["train"]),
        features=material.features(splits["train"]),
        target=target_profile(samples.task, samples.targets[splits["train"]]),
    )
    (folder / "profile.json").write_bytes(profile.to_json())
    _write_samples(samples, splits, folder / "samples")
    return _record(project, identifier, samples, splits, spec, stored, ledger)


def _read(project: Project, source: Source, material: Material, say: Say) -> Samples:
    targets, lost = source.targets(), source.lost()
    readable = np.ones(len(targets), dtype=bool)
    for one in lost:
        readable[one.start : one.stop] = False
    whole = np.flatnonzero(readable)
    if not len(whole):
        refuse_too_many(lost, len(targets), 0, source.name, _MEND)
    labelled = labelled_rows(
        targets[whole],
        project.data.target,
        lambda i: source.name(int(whole[i])),
        project.data.missing_target,
    )
    rows = whole[labelled]
    # Once before reading, so that wrong labels are said at once, and once for what could be read.
    make_task(project, targets[rows], lambda i: source.name(int(rows[i])))
    read = material.read(rows, say)
    lost = tuple(
        sorted(
            (*lost, *(Lost(row, row + 1, why) for row, why in read.unreadable.items())),
            key=lambda one: one.start,
        )
    )
    total = len(rows) + len(targets) - len(whole)
    refuse_too_many(lost, total, project.data.max_unreadable, source.name, _MEND)
    task, encoded = make_task(project, targets[read.rows], lambda i: source.name(int(read.rows[i])))
    return Samples(source, read, lost, len(whole) - len(rows), task, encoded)


def _split(project: Project, samples: Samples) -> dict[str, Positions]:
    wanted = project.data.split
    strata = samples.targets if samples.task.classes else np.zeros(len(samples.targets))
    return split(
        strata.astype(np.int64),
        samples.read.digests,
        validation=wanted.validation,
        test=wanted.test,
        seed=wanted.seed,
    )


def _write_samples(samples: Samples, splits: dict[str, Positions], folder: Path) -> None:
    """A few samples, spread over the test split (or another one where that is empty)."""
    folder.mkdir()
    positions = next(splits[name] for name in reversed(SPLITS) if len(splits[name]))
    chosen = positions[np.unique(np.linspace(0, len(positions) - 1, _SAMPLES).round().astype(int))]
    truths = []
    for number, position in enumerate(chosen.tolist()):
        suffix, content = samples.source.natural(int(samples.read.rows[position]))
        (folder / f"{number}{suffix}").write_bytes(content)
        truths.append(truth_text(samples.task, samples.targets[position]))
    (folder / "truths.json").write_bytes(msgspec.json.encode(truths))


def _findings(
    samples: Samples, splits: dict[str, Positions], stored: NDArray[np.uint64]
) -> tuple[Finding, ...]:
    found = (
        *quality.unreadable(sum(map(len, samples.lost)), told(samples.lost, samples.source.name)),
        *quality.unlabelled(samples.dropped),
        *samples.source.findings(),
        *quality.repeated(stored, samples.targets, samples.name),
        *quality.leaks(stored, splits),
    )
    if not samples.task.classes:
        return found
    return (*found, *quality.classes(samples.task.classes, samples.targets.astype(np.int64)))


def _place(project: Project) -> str:
    path = project.data.path
    if is_url(path):
        return printable(path)
    return str(project.root / path) if path else project.data.source


def _record(
    project: Project,
    identifier: str,
    samples: Samples,
    splits: dict[str, Positions],
    spec: NaturalInput,
    stored: NDArray[np.uint64],
    ledger: Path,
) -> Dataset:
    code = samples.source.code()
    digests = file_digests(list(code.values()), ledger)
    return Dataset(
        id=identifier,
        source=project.data.source,
        path=_place(project),
        folder="",
        samples=len(samples.targets),
        splits={name: len(splits[name]) for name in SPLITS},
        task=samples.task,
        input=spec,
        quality=_findings(samples, splits, stored),
        code=digest_texts([*code, *digests]) if code else "",
    )
