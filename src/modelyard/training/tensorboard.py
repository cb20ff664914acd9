"""A run for TensorBoard: scalars, histograms, pictures, hyper-parameters, the profiler's trace.

One reader more of the event log. It writes an event file of its own (``tensorboard_format``), at once
for what there is and then for what comes, so that TensorBoard follows a training that runs.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from modelyard.data.dataset import RECORD
from modelyard.spec.errors import StoreError, from_os_error
from modelyard.spec.records import (
    AnyEvent,
    Dataset,
    Evaluated,
    Restarted,
    Run,
    StepDone,
    WentBack,
)
from modelyard.store import Store
from modelyard.store.events import EventReader, now
from modelyard.store.files import write_atomic
from modelyard.training import histograms, trace
from modelyard.training import tensorboard_format as form
from modelyard.training.order import EVENTS, RUN
from modelyard.training.pictures import confusion_picture, png, training_samples
from modelyard.training.scalars import scalars_of


class TensorBoardWriter:
    """An observer that adds each event's numbers to a new event file in ``folder``."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads what has "tfevents" in its name, in the order of the names.
            path = folder / f"events.out.tfevents.{now():.6f}.modelyard"
            self._file = path.open("wb")
            self._file.write(form.file_header(now()))
        except OSError as error:
            raise from_os_error(error, folder) from error

    def __call__(self, event: AnyEvent) -> None:
        try:
            for record in records_of(event):
                self._file.write(record)
            self._file.flush()
        except OSError as error:
            raise from_os_error(error, Path(self._file.name)) from error

    def close(self) -> None:
        self._file.close()


class RunFollower:
    """Keeps one run's event file in ``log_folder`` up to date; an older file is replaced.

    Steps that were trained twice, before and after a restart, appear once: as they were last.
    Raises StoreError.
    """

    def __init__(self, run_folder: Path, log_folder: Path, dataset: Dataset | None = None) -> None:
        self._run_folder = run_folder
        self._log_folder = log_folder
        self._reader = EventReader(run_folder / EVENTS)
        self._spread_position = 0
        self._finished: str | None = None
        events = _without_repeats(list(self._reader.read()))
        began = events[0].time if events else now()
        self.path = log_folder / f"events.out.tfevents.{int(began)}.modelyard"
        run = self._run()
        first = [form.file_header(began), *_begin(run, dataset, began)]
        records = [*first, *(r for event in events for r in records_of(event)), *self._rest(run)]
        try:
            write_atomic(self.path, b"".join(records))
        except OSError as error:
            raise from_os_error(error) from error

    def update(self) -> None:
        """Add what is new since the last call."""
        records = [record for event in self._reader.read() for record in _live(event)]
        records += self._rest(self._run())
        if not records:
            return
        try:
            with self.path.open("ab") as file:
                file.write(b"".join(records))
        except OSError as error:
            raise from_os_error(error, self.path) from error

    def _rest(self, run: Run | None) -> list[bytes]:
        """What does not come from the event log: histograms, the end of the run, traces."""
        spreads, self._spread_position = histograms.read(
            self._run_folder / histograms.FILE, self._spread_position
        )
        records = [_histograms(spread) for spread in spreads if spread.tensors]
        if run is not None and run.state != "running" and run.finished != self._finished:
            self._finished = run.finished
            records += _end(run)
        _copy_traces(self._run_folder / trace.FOLDER, self._log_folder)
        return records

    def _run(self) -> Run | None:
        """Without a record, or with a damaged one, the events are shown all the same."""
        with contextlib.suppress(OSError, ValueError):
            return Run.from_json((self._run_folder / RUN).read_bytes())
        return None


class Follower:
    """All runs of a store: the ones there are, and those that begin later."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._runs: dict[str, RunFollower] = {}

    def update(self) -> None:
        """Raises StoreError."""
        for record in sorted((self._store.root / "runs").glob(f"*/{RUN}")):
            name = record.parent.name
            if name in self._runs:
                self._runs[name].update()
            else:
                dataset = self._dataset(record)
                self._runs[name] = RunFollower(record.parent, self._folder / name, dataset)

    def _dataset(self, record: Path) -> Dataset | None:
        """None where it was deleted: the curves are shown without pictures."""
        with contextlib.suppress(StoreError, OSError, ValueError):
            run = Run.from_json(record.read_bytes())
            return self._store.read_or_none(
                self._store.dataset_folder(run.dataset) / RECORD, Dataset
            )
        return None


def convert(run_folder: Path, log_folder: Path) -> Path:
    """Write the whole event log of a run as one event file in ``log_folder``. Raises StoreError."""
    return RunFollower(run_folder, log_folder).path


def records_of(event: AnyEvent) -> Iterator[bytes]:
    """The records that show ``event``; none for what has no numbers."""
    if scalars := scalars_of(event):
        step, values = scalars
        yield form.summary(
            event.time, step, [form.scalar(tag, value) for tag, value in values.items()]
        )


def _live(event: AnyEvent) -> Iterator[bytes]:
    """As ``records_of``; a restart also takes back what came after its step."""
    if isinstance(event, Restarted | WentBack):
        yield form.session_start(event.time, event.step + 1)
    yield from records_of(event)


def _without_repeats(events: list[AnyEvent]) -> list[AnyEvent]:
    """Drop what a later attempt trained again: steps at or above a later event's step."""
    kept: list[AnyEvent] = []
    lowest: dict[type, float] = {}
    for event in reversed(events):
        if isinstance(event, StepDone | Evaluated):
            if event.step >= lowest.get(type(event), float("inf")):
                continue
            lowest[type(event)] = event.step
        kept.append(event)
    return kept[::-1]


def _begin(run: Run | None, dataset: Dataset | None, began: float) -> Iterator[bytes]:
    if run is not None:
        values = dict(_hyper_parameters(run.inputs))
        yield form.summary(began, 0, [form.hyper_parameters(run.id, values, began)])
    if dataset is not None and (sheet := training_samples(dataset)) is not None:
        size = (sheet.height, sheet.width)
        yield form.summary(began, 0, [form.image("data/training_samples", png(sheet), size, 3)])


def _end(run: Run) -> Iterator[bytes]:
    ended = datetime.fromisoformat(run.finished).timestamp() if run.finished else now()
    if run.confusion:
        picture = confusion_picture(run.confusion)
        size = (picture.height, picture.width)
        value = form.image("best/test/confusion_matrix", png(picture), size, 3)
        yield form.summary(ended, run.step, [value])
    status = form.SUCCESS if run.state == "complete" else form.FAILURE
    yield form.summary(ended, 0, [form.session_end(status, ended)])


def _hyper_parameters(inputs: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """The settings of training and model, as numbers where they are numbers."""
    for name, text in inputs.items():
        if not name.startswith(("train.", "model.")):
            continue
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        yield name, value if isinstance(value, bool | int | float | str) else text


def _histograms(spread: histograms.Spread) -> bytes:
    values = [
        form.histogram(
            tag,
            edges=found.edges,
            counts=found.counts,
            total=found.total,
            squares=found.squares,
        )
        for tag, found in spread.tensors.items()
    ]
    return form.summary(spread.time, spread.step, values)


def _copy_traces(folder: Path, log_folder: Path) -> None:
    for made in folder.glob(f"*{trace.ENDING}"):
        target = log_folder / made.name
        try:
            if not target.exists() or target.stat().st_mtime < made.stat().st_mtime:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(made, target)
        except OSError as error:
            raise from_os_error(error, target) from error
