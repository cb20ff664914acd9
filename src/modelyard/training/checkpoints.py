"""Checkpoints: published whole by one rename, verified by hash, pruned only after the next one is there.

::

    checkpoints/
      .step-00000120.attempt-0/ being written: each worker its shard; nobody reads it
      step-00000120/            the backend's state, as `backends/snapshots.py` describes it
                                progress.json: the loop's state
                                manifest.json: step, metrics and the hash of every other file
      best.json                 the best one's manifest
"""

import math
import shutil
from pathlib import Path

import msgspec
import numpy as np

from modelyard.backends.base import Snapshot
from modelyard.backends.snapshots import Shard, read_snapshot, shard_name, share_of, write_shard
from modelyard.backends.tensors import Array
from modelyard.spec.errors import StoreError, TrainingError, from_os_error
from modelyard.spec.records import Checkpoint, Record
from modelyard.store.files import (
    digest_bytes,
    digest_file,
    make_folder,
    publish_folder,
    write_atomic,
    write_flushed,
)

MANIFEST, PROGRESS, BEST = "manifest.json", "progress.json", "best.json"
FORMAT = 2
_REFUSED = "refused"
"""In a folder that is being written: it will never be a checkpoint."""


class BrokenWeights(TrainingError):
    """What was to be saved holds a value that is no finite number; nothing of it is kept."""


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
    ranking: tuple[tuple[int, float], ...] = ()
    """Step and value of the few best, best first; the first is ``best_step``."""
    metrics: dict[str, float] = {}
    """Of the last evaluation."""
    skipped: tuple[int, ...] = ()
    """Steps, from 0, whose batches are left out: with them a loss or gradient was no finite number."""
    reductions: int = 0
    """How often a plateau has reduced the learning rate."""
    plateau_best: float | None = None
    plateau_stale: int = 0
    """Evaluations since ``plateau_best``, or since the last reduction."""
    seconds: float = 0.0
    step_seconds: float = 0.0
    samples: int = 0


def folder_of(run_folder: Path, step: int) -> Path:
    return run_folder / "checkpoints" / f"step-{step:08d}"


def save(
    run_folder: Path, snapshot: Snapshot, progress: Progress, *, epoch: float, keep: int
) -> Checkpoint:
    """Publish a checkpoint of ``progress.step`` by one worker alone, and wait until it is there.

    Raises TrainingError where a weight is not a finite number, StoreError for a full disk.
    """
    building = building_folder(run_folder, progress.step, attempt=0)
    try:
        make_folder(building)
        write_share(building, share_of(snapshot, 0, 1), 0, 1, progress.step)
        return publish(run_folder, building, 1, progress, epoch=epoch, keep=keep)
    except OSError as error:
        raise from_os_error(error) from error


def building_folder(run_folder: Path, step: int, attempt: int) -> Path:
    """Where the workers of one attempt put a checkpoint together; ``sweep`` removes what is left."""
    folder = folder_of(run_folder, step)
    return folder.with_name(f".{folder.name}.attempt-{attempt}")


def write_share(building: Path, share: Snapshot, rank: int, size: int, step: int) -> None:
    """This worker's shard. Raises TrainingError where a weight is not a finite number, OSError."""

    def refuse_broken(name: str, part: Array) -> None:
        if part.dtype.kind in "fc" and not _all_finite(part):
            raise broken_weights(name, step)

    try:
        write_shard(building, share, rank, size, refuse_broken)
    except BaseException as error:
        if size == 1:
            shutil.rmtree(building, ignore_errors=True)
        elif isinstance(error, BrokenWeights):  # worker 0 need not wait for it
            write_flushed(building / _REFUSED, [str(error).encode()])
        raise


def was_refused(building: Path) -> bool:
    """Whether another worker found a value in its share that is no finite number."""
    return (building / _REFUSED).exists()


def missing_shards(building: Path, size: int) -> list[int]:
    """The workers that have not yet written theirs."""
    return [rank for rank in range(size) if not (building / shard_name(rank)).exists()]


def publish(
    run_folder: Path, building: Path, size: int, progress: Progress, *, epoch: float, keep: int
) -> Checkpoint:
    """Make a checkpoint of what all workers have written, name the best one, delete what is too old."""
    files: dict[str, str] = {}
    for rank in range(size):
        content = (building / shard_name(rank)).read_bytes()
        files |= {**Shard.from_json(content).files, shard_name(rank): digest_bytes(content)}
    files[PROGRESS] = write_flushed(building / PROGRESS, [progress.to_json()])
    folder = folder_of(run_folder, progress.step)
    checkpoint = Checkpoint(
        step=progress.step,
        epoch=epoch,
        folder=str(folder),
        metrics=progress.metrics,
        files=files,
        format=FORMAT,
    )
    write_flushed(building / MANIFEST, [checkpoint.to_json()])
    publish_folder(building, folder)
    name_best(run_folder, progress)
    _prune(run_folder, progress, keep)
    return checkpoint


def found(folder: Path) -> Checkpoint:
    """What the manifest in ``folder`` says. Raises StoreError where there is none that can be read."""
    try:
        checkpoint = Checkpoint.from_json((folder / MANIFEST).read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(f"the checkpoint {folder} is damaged: {error}") from error
    # The store may have been moved since the manifest was written.
    return msgspec.structs.replace(checkpoint, folder=str(folder))


def verified(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``, every file compared with its hash. Raises StoreError."""
    checkpoint = found(folder)
    refuse_newer(checkpoint)
    try:
        wrong = [
            name
            for name, digest in checkpoint.files.items()
            if digest_file(folder / name) != digest
        ]
    except OSError as error:
        raise StoreError(f"the checkpoint {folder} is damaged: {error}") from error
    if wrong:
        raise StoreError(
            f"the checkpoint {folder} is damaged: {', '.join(wrong)} is not what was written"
        )
    return checkpoint


def refuse_newer(checkpoint: Checkpoint) -> None:
    """Raise StoreError where a later version of Modelyard wrote it: passing over it would lose work."""
    if checkpoint.format > FORMAT:
        raise StoreError(
            f"the checkpoint {checkpoint.folder} has format {checkpoint.format}, this version of "
            f"Modelyard reads up to {FORMAT}",
            "use the version that wrote it: `pip install --upgrade modelyard`",
        )


def latest(run_folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and a message for each newer one that is damaged and was skipped.

    Raises StoreError where the newest is of a newer format.
    """
    skipped: list[str] = []
    for folder in reversed(_published(run_folder)):
        try:
            checkpoint = found(folder)
        except StoreError as error:
            skipped.append(f"{error.what}; an older one is used")
            continue
        refuse_newer(checkpoint)
        try:
            return verified(folder), skipped
        except StoreError as error:
            skipped.append(f"{error.what}; an older one is used")
    return None, skipped


def newest_step(run_folder: Path) -> int:
    """Of the newest checkpoint by its manifest alone, 0 without one: quick, whatever its size."""
    for folder in reversed(_published(run_folder)):
        if (folder / MANIFEST).exists():
            return int(folder.name[5:])
    return 0


def best(run_folder: Path) -> Checkpoint | None:
    """The checkpoint that ``best.json`` names, if it is whole."""
    try:
        named = Checkpoint.from_json((run_folder / "checkpoints" / BEST).read_bytes())
        return verified(folder_of(run_folder, named.step))
    except (OSError, msgspec.DecodeError, StoreError):
        return None


def load(checkpoint: Checkpoint) -> tuple[Snapshot, Progress]:
    """The state that was saved: whole tensors, whoever wrote them; large ones are memory-mapped.

    Raises StoreError where it was damaged since.
    """
    folder = Path(checkpoint.folder)
    refuse_newer(checkpoint)
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
    """Remove what a killed writer left behind; only for the one who writes, or when nobody does."""
    for rest in (run_folder / "checkpoints").glob(".*"):
        if rest.is_dir():
            shutil.rmtree(rest, ignore_errors=True)
        else:
            rest.unlink(missing_ok=True)


def _published(run_folder: Path) -> list[Path]:
    """Oldest first; the names have a fixed width up to a hundred million steps."""
    folders = (run_folder / "checkpoints").glob("step-*")
    return sorted((f for f in folders if f.name[5:].isdigit()), key=lambda f: int(f.name[5:]))


def ranked(progress: Progress, value: float, *, keep: int, higher_is_better: bool) -> Progress:
    """``progress`` with this step's ``value`` among the ``keep`` best; of equals the older is better."""
    ranking = ranking_of(progress)
    if math.isfinite(value):
        ranking = (*ranking, (progress.step, value))
    sign = -1 if higher_is_better else 1
    best_first = sorted(ranking, key=lambda entry: sign * entry[1])
    return with_ranking(progress, tuple(best_first[:keep]))


def ranking_of(progress: Progress) -> tuple[tuple[int, float], ...]:
    """The few best, also of a state that was written when only one was kept."""
    if progress.ranking or progress.best_step is None or progress.best_value is None:
        return progress.ranking
    return ((progress.best_step, progress.best_value),)


def with_ranking(progress: Progress, ranking: tuple[tuple[int, float], ...]) -> Progress:
    """``progress`` with the best step that ``ranking`` says."""
    step, value = ranking[0] if ranking else (None, None)
    return msgspec.structs.replace(progress, ranking=ranking, best_step=step, best_value=value)


def _prune(run_folder: Path, progress: Progress, keep: int) -> None:
    """A folder is first renamed out of sight, so that a crash here leaves no half checkpoint.

    Those newer than ``progress`` were damaged, else training would not be here; it replaces them.
    """
    best = {progress.best_step, *(step for step, _ in progress.ranking)}
    passed = [f for f in _published(run_folder) if int(f.name[5:]) <= progress.step]
    for folder in passed[:-keep]:
        if int(folder.name[5:]) not in best:
            hidden = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(hidden, ignore_errors=True)
            folder.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)


def _all_finite(part: Array) -> bool:
    """A sum is cheaper than a mask, and finite only where all terms are; it may overflow, though."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(part.sum()) or np.isfinite(part).all())


def broken_weights(name: str, step: int) -> BrokenWeights:
    return BrokenWeights(
        f"after step {step}, {name} holds values that are not finite numbers",
        "use a smaller train.optimizer.lr, set train.clip_norm = 1.0, or look for extreme values in the data",
    )
