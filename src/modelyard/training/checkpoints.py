"""Checkpoints: published whole by one rename, verified by hash, pruned only after the next one is there.

::

    checkpoints/
      step-00000120/            model.safetensors, optimizer.safetensors, state.json: the backend's state
                                progress.json: the loop's state
                                manifest.json: step, metrics and the hash of every other file
      best.json                 the best one's manifest
"""

import shutil
from pathlib import Path

import msgspec
import numpy as np

from modelyard.backends.base import Snapshot
from modelyard.backends.snapshots import read_snapshot, write_snapshot
from modelyard.spec.errors import StoreError, TrainingError, YardError, from_os_error
from modelyard.spec.records import Checkpoint, Record
from modelyard.store.files import digest_bytes, digest_file, new_folder, write_atomic

MANIFEST, PROGRESS, BEST = "manifest.json", "progress.json", "best.json"


class Progress(Record, frozen=True, kw_only=True):
    """Where the loop is: all that it must remember beside the backend's state."""

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    """Of ``train.metric`` on the validation split."""
    stale: int = 0
    """Evaluations since the last improvement worth its name."""
    stopped: bool = False
    """Early stopping has ended it."""
    metrics: dict[str, float] = {}
    """Of the last evaluation."""
    seconds: float = 0.0
    step_seconds: float = 0.0
    samples: int = 0


def folder_of(run_folder: Path, step: int) -> Path:
    return run_folder / "checkpoints" / f"step-{step:08d}"


def save(
    run_folder: Path, snapshot: Snapshot, progress: Progress, *, epoch: float, keep: int
) -> Checkpoint:
    """Publish a checkpoint of ``progress.step``, then name the best one and delete what is too old.

    Raises TrainingError where a weight is not a finite number, StoreError for a full disk.
    """
    _refuse_broken(snapshot, progress.step)
    folder = folder_of(run_folder, progress.step)
    try:
        with new_folder(folder) as building:
            files = write_snapshot(building, snapshot)
            content = progress.to_json()
            (building / PROGRESS).write_bytes(content)
            checkpoint = Checkpoint(
                step=progress.step,
                epoch=epoch,
                folder=str(folder),
                metrics=progress.metrics,
                files={**files, PROGRESS: digest_bytes(content)},
            )
            (building / MANIFEST).write_bytes(checkpoint.to_json())
        name_best(run_folder, progress)
        _prune(run_folder, progress, keep)
    except OSError as error:
        raise from_os_error(error) from error
    return checkpoint


def verified(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``, every file compared with its hash. Raises StoreError."""
    try:
        checkpoint = Checkpoint.from_json((folder / MANIFEST).read_bytes())
        wrong = [
            name
            for name, digest in checkpoint.files.items()
            if digest_file(folder / name) != digest
        ]
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(f"the checkpoint {folder} is damaged: {error}") from error
    if wrong:
        raise StoreError(
            f"the checkpoint {folder} is damaged: {', '.join(wrong)} is not what was written"
        )
    # The store may have been moved since the manifest was written.
    return msgspec.structs.replace(checkpoint, folder=str(folder))


def latest(run_folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and a message for each newer one that is damaged and was skipped."""
    skipped: list[str] = []
    for folder in reversed(_published(run_folder)):
        try:
            return verified(folder), skipped
        except StoreError as error:
            skipped.append(f"{error.what}; an older one is used")
    return None, skipped


def best(run_folder: Path) -> Checkpoint | None:
    """The checkpoint that ``best.json`` names, if it is whole."""
    try:
        named = Checkpoint.from_json((run_folder / "checkpoints" / BEST).read_bytes())
        return verified(folder_of(run_folder, named.step))
    except (OSError, msgspec.DecodeError, StoreError):
        return None


def load(checkpoint: Checkpoint) -> tuple[Snapshot, Progress]:
    """The state that was saved. Raises StoreError where it was damaged since."""
    folder = Path(checkpoint.folder)
    snapshot = read_snapshot(folder, checkpoint.files)
    try:
        return snapshot, Progress.from_json((folder / PROGRESS).read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(f"the checkpoint {folder} is damaged: {error}") from error


def name_best(run_folder: Path, progress: Progress) -> None:
    """Make ``best.json`` name the checkpoint that ``progress`` holds for the best (or the only) one."""
    step = progress.step if progress.best_step is None else progress.best_step
    manifest = folder_of(run_folder, step) / MANIFEST
    named = run_folder / "checkpoints" / BEST
    content = manifest.read_bytes()
    if not named.exists() or named.read_bytes() != content:
        write_atomic(named, content)


def sweep(run_folder: Path) -> None:
    """Remove what a killed writer left behind; only for the one who writes, before it writes."""
    for rest in (run_folder / "checkpoints").glob(".*"):
        if rest.is_dir():
            shutil.rmtree(rest, ignore_errors=True)
        else:
            rest.unlink(missing_ok=True)


def _published(run_folder: Path) -> list[Path]:
    """Oldest first; the names have a fixed width up to a hundred million steps."""
    folders = (run_folder / "checkpoints").glob("step-*")
    return sorted((f for f in folders if f.name[5:].isdigit()), key=lambda f: int(f.name[5:]))


def _prune(run_folder: Path, progress: Progress, keep: int) -> None:
    """A folder is first renamed out of sight, so that a crash here leaves no half checkpoint."""
    spare = {folder_of(run_folder, step).name for step in (progress.step, progress.best_step or -1)}
    for folder in _published(run_folder)[:-keep]:
        if folder.name not in spare:
            hidden = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(hidden, ignore_errors=True)
            folder.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)


def _refuse_broken(snapshot: Snapshot, step: int) -> None:
    for name, array in snapshot.tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise broken_weights(name, step)


def broken_weights(name: str, step: int) -> YardError:
    return TrainingError(
        f"after step {step}, {name} holds values that are not finite numbers",
        "use a smaller train.optimizer.lr, set train.clip_norm = 1.0, or look for extreme values in the data",
    )
