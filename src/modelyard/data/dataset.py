"""A prepared dataset: its identity, its making (kept in the store), and batches from it."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelyard.data.digest import digest_texts, file_digests
from modelyard.data.gather import gather
from modelyard.data.packed import PLACES, PackedPictures, open_packed
from modelyard.data.prepare import make_dataset
from modelyard.data.preprocess import finish
from modelyard.data.readahead import Readahead, open_readahead
from modelyard.data.sources import open_source
from modelyard.data.split import SPLITS
from modelyard.data.targets import asked_task
from modelyard.spec.errors import DataError, StoreError, UsageError, from_os_error
from modelyard.spec.losses import LOSSES
from modelyard.spec.project import Project
from modelyard.spec.records import Dataset
from modelyard.spec.signature import ImageInput, MixedInput, NaturalInput
from modelyard.spec.urls import local_path, printable
from modelyard.store import Store
from modelyard.store.files import lock, new_folder

PREPARATION_VERSION = 1
"""Raised when the code here would lay out the same data in another way."""
RECORD, INPUTS, TARGETS, SAMPLES = "dataset.json", "inputs.npy", "targets.npy", "samples"


def dataset_id(project: Project, store: Store) -> str:
    """Digest of the source's content and of all that shapes the preparation: 16 hex characters.

    Files that have not changed since the last call are not read again. Raises DataError, StoreError.
    """
    source = open_source(project)
    files, code = source.files(), source.code()
    digests = file_digests([*files, *code.values()], store.ledger)
    path = Path(local_path(project.data.path)).expanduser()
    base = len(str((project.root / path).resolve()))
    names = [*(str(file)[base:] for file in files), *code]
    shape = {
        "preparation": PREPARATION_VERSION,
        "data": project.data.model_dump(mode="json", exclude={"cache_gb"}),
        "task": _shaping(project),
    }
    return digest_texts([json.dumps(shape, sort_keys=True), *names, *digests, *source.stamps()])


def _shaping(project: Project) -> dict[str, Any]:
    """What of ``[task]`` decides how targets are stored: not the loss, which each training may choose anew."""
    task = project.task.model_dump(mode="json")
    return {"type": project.task.type} if project.task.type in LOSSES else task


def prepare(
    project: Project, store: Store, *, on_progress: Callable[[str], None] | None = None
) -> Dataset:
    """The project's dataset: what the store has, or made now and kept there whole or not at all.

    Raises DataError for the user's data, StoreError for the store, UsageError for a wrong task.
    """
    say = on_progress or _quiet
    identifier = dataset_id(project, store)
    folder = store.dataset_folder(identifier)
    if found := _whole(folder):
        return asked(project, found)
    try:
        # One at a time: whoever waited finds it made.
        with lock(folder.parent / f".{identifier}.lock"):
            return asked(project, _whole(folder) or _make(project, store, identifier, say))
    except OSError as error:
        raise from_os_error(error, folder) from error


def asked(project: Project, dataset: Dataset) -> Dataset:
    """``dataset`` with the loss and the metrics that ``project`` asks for: they leave its arrays as they are.

    Raises UsageError, DataError.
    """
    if project.task.type not in LOSSES:  # of another package: all of it is in the dataset's id
        return dataset
    counts, classes = None, dataset.task.classes
    if project.task.class_weights == "balanced" and classes:
        split = open_split(dataset, "train")
        counts = np.bincount(split.targets[split.positions], minlength=len(classes)).tolist()
    task = asked_task(project, dataset.task.target, classes, counts)
    return msgspec.structs.replace(dataset, task=task)


def _make(project: Project, store: Store, identifier: str, say: Callable[[str], None]) -> Dataset:
    folder = store.dataset_folder(identifier)
    for leftover in folder.parent.glob(f".{identifier}.*"):  # of a preparation that was killed
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
    say(f"preparing {printable(project.data.path) or project.data.source}")
    with new_folder(folder) as temporary:
        try:
            source = open_source(project)
            source.say = say
            made = make_dataset(project, source, identifier, temporary, store.ledger, say)
            if dataset_id(project, store) != identifier:
                raise DataError(
                    "the data changed while it was being prepared", "run the command again"
                )
            dataset = msgspec.structs.replace(made, folder=str(folder))
            (temporary / RECORD).write_bytes(dataset.to_json())
        except OSError as error:  # here, while what fills the disk still counts as taken
            raise from_os_error(error, folder) from error
    return dataset


def _whole(folder: Path) -> Dataset | None:
    """The dataset in ``folder``, or None where there is none or a file is missing or cut short."""
    try:
        dataset = Dataset.from_json((folder / RECORD).read_bytes())
        dataset = msgspec.structs.replace(dataset, folder=str(folder))
        for name in SPLITS:
            open_split(dataset, name)
        natural_samples(dataset)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os_error(error) from error
    except (msgspec.DecodeError, StoreError):
        return None
    return dataset


def _quiet(_message: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Split:
    """One of a dataset's splits: memory-mapped arrays and the positions that belong to it."""

    spec: NaturalInput
    inputs: NDArray[Any] | PackedPictures
    """All samples in stored form, or what makes it of them."""
    targets: NDArray[Any]
    positions: NDArray[np.int64]
    """Where this split's samples stand in ``inputs``."""
    readahead: Readahead | None = None
    """Of the file behind ``inputs``, where there is one."""

    def __len__(self) -> int:
        return len(self.positions)

    def other(self, dataset: Dataset, name: str) -> "Split":
        """Another split of the same dataset, which shares the arrays and whoever decodes. Raises StoreError."""
        positions = _open_array(Path(dataset.folder) / f"{name}.npy")
        return replace(self, positions=positions)

    def begin(self, rows: NDArray[np.int64]) -> None:
        """These rows of the whole arrays will be asked for next: have them decoded meanwhile."""
        if isinstance(self.inputs, PackedPictures):
            self.inputs.begin(rows)

    def forget(self) -> None:
        """What was begun will not be asked for."""
        if isinstance(self.inputs, PackedPictures):
            self.inputs.forget()

    def batch(self, positions: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Samples by their places in the split -> inputs in model form, (n, *shape), and targets (n,)."""
        inputs, targets = self._rows(positions)
        return finish(self.spec, inputs), targets

    def stored(self, positions: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """As ``batch``, but images, and rows of several parts, as they are stored: for the backend to finish.

        The arrays are the caller's own.
        """
        if isinstance(self.spec, ImageInput | MixedInput):
            return self._rows(positions)
        return self.batch(positions)

    def stored_inputs(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The inputs of ``stored``, by places in the whole arrays: ``positions[places in the split]``."""
        inputs = self._gather(rows)
        return (
            inputs if isinstance(self.spec, ImageInput | MixedInput) else finish(self.spec, inputs)
        )

    def _rows(self, positions: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        rows = self.positions.take(positions)
        return self._gather(rows), self.targets.take(rows, axis=0)

    def _gather(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        inputs = self.inputs
        return inputs.take(rows) if isinstance(inputs, PackedPictures) else gather(inputs, rows)


def open_split(dataset: Dataset, name: str, *, workers: int = 1) -> Split:
    """Open ``train``, ``validation`` or ``test``. Raises StoreError where the arrays are damaged.

    ``workers``: processes that do so at the same time; those who decode for them share the cores.
    """
    if name not in SPLITS:
        raise UsageError(f"no split {name!r}", f"there are {', '.join(SPLITS)}")
    folder = Path(dataset.folder)
    inputs = _open_inputs(dataset.input, folder, workers)
    split = Split(
        spec=dataset.input,
        inputs=inputs,
        readahead=None
        if isinstance(inputs, PackedPictures)
        else open_readahead(folder / INPUTS, inputs),
        targets=_open_array(folder / TARGETS),
        positions=_open_array(folder / f"{name}.npy"),
    )
    if len(split.inputs) != dataset.samples or len(split) != dataset.splits[name]:
        raise StoreError(
            f"{folder} is damaged: the arrays do not fit {RECORD}",
            "delete that folder; it is made again",
        )
    return split


def _open_inputs(spec: NaturalInput, folder: Path, workers: int) -> NDArray[Any] | PackedPictures:
    if isinstance(spec, ImageInput) and (folder / PLACES).exists():
        return open_packed(spec, folder, _open_array(folder / PLACES), workers)
    return _open_array(folder / INPUTS)


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


def _open_array(path: Path) -> NDArray[Any]:
    try:
        # A plain view: indexing NumPy's memmap class costs more than indexing an array.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except OSError as error:
        raise from_os_error(error) from error
    except ValueError as error:
        raise StoreError(
            f"{path} is damaged: {error}", "delete the folder that holds it; it is made again"
        ) from error
