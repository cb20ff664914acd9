"""A prepared dataset: its identity, its making, and batches from it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelyard.data.preprocess import finish
from modelyard.spec.errors import StoreError, UsageError, from_os_error
from modelyard.spec.records import Dataset
from modelyard.spec.signature import NaturalInput

SPLITS = ("train", "validation", "test")
RECORD, INPUTS, TARGETS, SAMPLES = "dataset.json", "inputs.npy", "targets.npy", "samples"


@dataclass(frozen=True)
class Split:
    """One of a dataset's splits: memory-mapped arrays and the positions that belong to it."""

    spec: NaturalInput
    inputs: NDArray[Any]
    """All samples in stored form."""
    targets: NDArray[Any]
    positions: NDArray[np.int64]
    """Where this split's samples stand in ``inputs``."""

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Samples by their places in the split -> inputs in model form, float32 (n, *shape), and targets (n,)."""
        rows = self.positions[positions]
        return finish(self.spec, self.inputs[rows]), self.targets[rows]


def open_split(dataset: Dataset, name: str) -> Split:
    """Open ``train``, ``validation`` or ``test``. Raises StoreError where the arrays are damaged."""
    if name not in SPLITS:
        raise UsageError(f"no split {name!r}", f"there are {', '.join(SPLITS)}")
    folder = Path(dataset.folder)
    split = Split(
        spec=dataset.input,
        inputs=_open_array(folder / INPUTS, mapped=True),
        targets=_open_array(folder / TARGETS),
        positions=_open_array(folder / f"{name}.npy"),
    )
    if len(split.inputs) != dataset.samples or len(split) != dataset.splits[name]:
        raise StoreError(
            f"{folder} is damaged: the arrays do not fit {RECORD}",
            "delete that folder; it is made again",
        )
    return split


def natural_samples(dataset: Dataset) -> list[tuple[str, bytes | dict[str, Any] | list[Any], str]]:
    """A few test samples as they came: (file name, image bytes, row or nested list; true label as text)."""
    folder = Path(dataset.folder) / SAMPLES
    try:
        truths: Sequence[str] = json.loads((folder / "truths.json").read_bytes())
        files = sorted((file for file in folder.iterdir() if file.stem.isdigit()), key=_number)
        contents = [file.read_bytes() for file in files]
    except OSError as error:
        raise from_os_error(error) from error
    return [
        (file.name, msgspec.json.decode(content) if file.suffix == ".json" else content, truth)
        for file, content, truth in zip(files, contents, truths, strict=True)
    ]


def _number(file: Path) -> int:
    return int(file.stem)


def _open_array(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    try:
        # A plain view: indexing NumPy's memmap class costs more than indexing an array.
        return np.asarray(np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False))
    except OSError as error:
        raise from_os_error(error) from error
    except ValueError as error:
        raise StoreError(
            f"{path} is damaged: {error}", "delete the folder that holds it; it is made again"
        ) from error
