"""Training a finished run once more, in a scratch place, and saying whether the same comes out.

Nothing runs that the user did not ask for: the code in the project's folder is used only if it still
has the digest that the run recorded, and the copy kept in the run's folder only when told to.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from modelyard.backends.source import code_files
from modelyard.data.dataset import RECORD, prepare
from modelyard.spec.errors import DataError, ModelError, NotFoundError, UsageError
from modelyard.spec.losses import own_functions
from modelyard.spec.project import ModelSection, Project, StoreSection
from modelyard.spec.records import AnyEvent, Dataset, Record, Run
from modelyard.store import Store, open_store
from modelyard.store.files import digest_file
from modelyard.training import checkpoints
from modelyard.training.budget import ENDINGS
from modelyard.training.inputs import code_of
from modelyard.training.start_weights import as_path, find_start
from modelyard.training.surroundings import CODE, kept_project, machine, versions
from modelyard.training.train import train


class Reproduction(Record, frozen=True, kw_only=True):
    """What came out of training a run again, beside what it gave the first time."""

    run: str
    same: bool
    """Every weight bit-equal, and every metric."""
    steps: tuple[int, int]
    """Of the best checkpoint: then and now."""
    tensors: int
    different: tuple[str, ...] = ()
    """Tensors that are not bit-equal."""
    largest_difference: float = 0.0
    """Of any weight; infinite where shapes or names differ."""
    largest_in: str = ""
    metrics: dict[str, tuple[float, float]] = {}
    """Then and now."""
    largest_metric_difference: float = 0.0
    notes: tuple[str, ...] = ()
    """What is different around it: versions, processor."""
    seconds: float = 0.0


def reproduce(
    run: Run,
    store: Store,
    root: Path,
    *,
    kept_code: bool = False,
    observers: Sequence[Callable[[AnyEvent], None]] = (),
) -> Reproduction:
    """Train ``run`` of ``store`` again from what it recorded; the project's folder is ``root``.

    Raises UsageError for a run without a result, ModelError where the code is no longer the same
    (naming the files), DataError where the data is not, StoreError for a record from before.
    """
    if run.state != "complete" or run.best is None:
        raise UsageError(
            f"the run {run.id} is {run.state}: there is no result to compare with",
            "run `yard train` to its end first",
        )
    code = Path(run.folder) / CODE if kept_code else root
    project = _limited(kept_project(run, code), run)
    _check_code(run, project)
    project = project.model_copy(update={"store": _at(store), "model": _model(run, root, store)})
    dataset = _dataset(run, store, kept_project(run, root))
    best = checkpoints.verified(checkpoints.folder_of(Path(run.folder), run.best.step))
    first = _weights(checkpoints.load(best)[0].tensors)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="yard-reproduce-") as folder:
        again = train(project, dataset, open_store(Path(folder)), observers=observers)
        if again.best is None:
            raise NotFoundError(f"training {run.id} again gave no checkpoint")
        second = _weights(
            checkpoints.load(checkpoints.verified(Path(again.best.folder)))[0].tensors
        )
    compared = compare_weights(first, second)
    metrics = {
        name: (value, again.metrics[name])
        for name, value in run.metrics.items()
        if name in again.metrics
    }
    gap = max((_gap(then, now) for then, now in metrics.values()), default=0.0)
    return replace(
        compared,
        run=run.id,
        same=compared.same and gap == 0 and metrics.keys() == run.metrics.keys(),
        steps=(run.best.step, again.best.step),
        metrics=metrics,
        largest_metric_difference=gap,
        notes=tuple(_notes(run)),
        seconds=time.monotonic() - began,
    )


def compare_weights(
    first: Mapping[str, NDArray[Any]], second: Mapping[str, NDArray[Any]]
) -> Reproduction:
    """Tensor by tensor: bit-equal or not, and the largest difference of any number."""
    different, largest, where = [], 0.0, ""
    for name in sorted({*first, *second}):
        one, two = first.get(name), second.get(name)
        if one is None or two is None or one.shape != two.shape or one.dtype != two.dtype:
            gap = np.inf
        elif one.tobytes() == two.tobytes():
            continue
        else:
            gap = _largest_gap(one, two)
        different.append(name)
        if gap >= largest:
            largest, where = float(gap), name
    return Reproduction(
        run="",
        same=not different,
        steps=(0, 0),
        tensors=len({*first, *second}),
        different=tuple(different),
        largest_difference=largest,
        largest_in=where,
    )


def _largest_gap(one: NDArray[Any], two: NDArray[Any]) -> float:
    if one.dtype.kind == "V":  # a number format that NumPy does not know: only equal or not
        return float("inf")
    gaps = np.abs(one.astype(np.float64) - two.astype(np.float64))
    return float(np.nan_to_num(gaps, nan=np.inf).max(initial=0.0))


def _gap(then: float, now: float) -> float:
    if then == now or (then != then and now != now):
        return 0.0
    gap = abs(then - now)
    return gap if gap == gap else float("inf")


def _weights(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: array for name, array in tensors.items() if name.startswith("model.")}


def _limited(project: Project, run: Run) -> Project:
    """As far as the run went, in the way that it came to compute its steps, without other budgets."""
    limits = {
        "max_time": None,
        "max_cost": None,
        "price_per_worker_hour": None,
        "max_steps": run.step if run.reason and run.reason in ENDINGS else None,
    }
    chosen = {name: value for name, value in run.execution.items() if value is not None}
    chosen = {"linear": "blas", **chosen}  # runs of before there was a choice do not say it
    section = project.train.model_copy(update={**limits, **chosen})
    return project.model_copy(update={"train": section})


def _model(run: Run, root: Path, store: Store) -> ModelSection:
    """With the weights to start from where they are, seen from the project's own folder."""
    kept = kept_project(run, root).model_copy(update={"store": _at(store)})
    start = find_start(kept)
    return kept.model.model_copy(update={"weights": as_path(start)}) if start else kept.model


def _at(store: Store) -> StoreSection:
    return StoreSection(url=str(store.root.resolve()))


def _check_code(run: Run, project: Project) -> None:
    recorded, build = run.inputs.get("code", ""), project.model.full_name
    try:
        if code_of(project) == recorded:
            return
        files = code_files(project.root, build, *own_functions(project.task))
        now = {name: digest_file(path) for name, path in files.items()}
    except ModelError:  # the file itself is gone
        now = {}
    changed = sorted(name for name in {*now, *run.code} if now.get(name) != run.code.get(name))
    shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
    raise ModelError(
        f"the code is not what {run.id} was made from: {shown or build} changed since",
        "go back to that version, or use the copy that the run kept: --kept-code",
    )


def _dataset(run: Run, store: Store, project: Project) -> Dataset:
    """As the store has it; prepared again where it was deleted, if it is still the same data."""
    folder = store.dataset_folder(run.dataset)
    if found := store.read_or_none(folder / RECORD, Dataset):
        return replace(found, folder=str(folder))
    dataset = prepare(project, store)
    if dataset.id != run.dataset:
        raise DataError(
            f"the data is not what {run.id} was made from: it is {dataset.id} now, it was {run.dataset}",
            "bring back the files as they were",
        )
    return dataset


def _notes(run: Run) -> list[str]:
    """What is different now around the run, in words."""
    now = versions()
    notes = [
        f"{name} was {run.versions.get(name, 'not there')}, is {now.get(name, 'not there')}"
        for name in sorted({*now, *run.versions})
        if run.versions and now.get(name) != run.versions.get(name)
    ]
    here = machine()
    if run.machine is not None and run.machine.processor != here.processor:
        notes.append(f"the processor was {run.machine.processor}, is {here.processor}")
    if run.restarts:
        notes.append(f"the run was restarted {run.restarts} times")
    return notes
