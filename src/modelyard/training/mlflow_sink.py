"""Writes one run into MLflow: ``python -m modelyard.training.mlflow_sink RUN_FOLDER``, started by ``tracking``.

It reads the run's event log from where it stopped before, sends numbers in batches to the run of the
same name in MLflow (found again by a tag, so that a resumed training goes on in it), and ends when its
input is closed and everything is sent. An error is one notice in the event log; then it tries again.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from modelyard.spec.records import AnyEvent, Run, RunFinished, RunStarted, StepDone
from modelyard.store.events import EventReader
from modelyard.store.files import write_atomic
from modelyard.training.order import EVENTS, RUN
from modelyard.training.scalars import scalars_of
from modelyard.training.tracking import (
    STATE,
    VARIABLE,
    Tracking,
    notice,
    read_state,
    without_password,
)

_TAG = "modelyard.run"
_SECONDS_BETWEEN = 2.0
_STEP_SECONDS = 5.0
"""Of the steps' numbers one set in five seconds is sent: a server with millions of points is slow."""
_MOST_METRICS, _MOST_PARAMETERS = 1000, 100
_LONGEST_VALUE = 500
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}
"""Patience belongs to this program; and who writes ``file:`` has chosen the file store."""


class Sink:
    """One run's connection to MLflow."""

    def __init__(self, folder: Path, address: str) -> None:
        from mlflow import MlflowClient

        self._folder = folder
        self._shown = without_password(address)
        self._client = MlflowClient(tracking_uri=address)
        self._run = self._found() or self._begun()
        state = read_state(folder)
        known = state is not None and (state.address, state.run) == (self._shown, self._run)
        self._position = state.position if state is not None and known else 0
        self._last_step = float("-inf")

    def send(self) -> bool:
        """Everything that is new; True where that was the end of the run."""
        reader = EventReader(self._folder / EVENTS, self._position)
        events = list(reader.read())
        if not events:
            return False
        metrics = list(self._metrics(events))
        for start in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._run, metrics=metrics[start : start + _MOST_METRICS])
        ends = [event for event in events if isinstance(event, RunFinished | RunStarted)]
        finished = ends[-1] if ends and isinstance(ends[-1], RunFinished) else None
        if finished is not None:
            status = {"complete": "FINISHED", "failed": "FAILED"}.get(finished.state, "KILLED")
            self._client.set_tag(self._run, "modelyard.reason", finished.reason)
            self._client.set_terminated(self._run, status, int(finished.time * 1000))
        elif ends:
            self._client.update_run(self._run, status="RUNNING")
        self._position = reader.position
        state = Tracking(address=self._shown, run=self._run, position=self._position)
        write_atomic(self._folder / STATE, state.to_json())
        return finished is not None

    def _metrics(self, events: Sequence[AnyEvent]) -> Iterator[Any]:
        from mlflow.entities import Metric

        last = next((e for e in reversed(events) if isinstance(e, StepDone)), None)
        for event in events:
            if isinstance(event, StepDone):
                if event.time - self._last_step < _STEP_SECONDS and event is not last:
                    continue
                self._last_step = event.time
            step, values = scalars_of(event) or (0, {})
            for name, value in values.items():
                yield Metric(name, value, int(event.time * 1000), step)

    def _found(self) -> str | None:
        """MLflow's run of this name, where an earlier command has made one."""
        experiment = self._client.get_experiment_by_name(self._record().project)
        if experiment is None:
            return None
        runs = self._client.search_runs(
            [experiment.experiment_id], f"tags.`{_TAG}` = '{self._record().id}'", max_results=1
        )
        return str(runs[0].info.run_id) if runs else None

    def _begun(self) -> str:
        from mlflow.entities import Param

        record = self._record()
        run = self._client.create_run(
            self._experiment(record.project), run_name=record.id, tags=_tags(record)
        )
        identifier = str(run.info.run_id)
        parameters = [Param(name, value[:_LONGEST_VALUE]) for name, value in record.inputs.items()]
        for start in range(0, len(parameters), _MOST_PARAMETERS):
            batch = parameters[start : start + _MOST_PARAMETERS]
            self._client.log_batch(identifier, params=batch)
        return identifier

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if found := self._client.get_experiment_by_name(name):
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException:  # another training of the project was faster
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def _record(self) -> Run:
        return Run.from_json((self._folder / RUN).read_bytes())


def _tags(record: Run) -> dict[str, str]:
    tags = {
        _TAG: record.id,
        "modelyard.dataset": record.dataset,
        "modelyard.command": record.command,
    }
    tags |= {f"version.{name}": value for name, value in record.versions.items()}
    if record.machine is not None:
        tags |= {
            "machine.host": record.machine.host,
            "machine.processor": record.machine.processor,
            "machine.gpus": ", ".join(record.machine.gpus),
        }
    return {name: value[:_LONGEST_VALUE] for name, value in tags.items() if value}


def main(folder: Path, address: str) -> int:
    """Send until the input is closed and the rest is sent; 1 where the last try failed."""
    closed = _input_closed()
    sink, told = None, False
    while True:
        last = closed.wait(_SECONDS_BETWEEN if sink is not None else 0.0)
        try:
            sink = sink or Sink(folder, address)
            sink.send()
            failed = False
        except Exception as error:  # noqa: BLE001  whatever MLflow raises must not reach the training
            failed = True
            sys.stderr.write(f"{time.strftime('%FT%T')} {type(error).__name__}: {error}\n")
            if not told:
                told = True
                notice(folder, _explain(address, error))
        if last:
            return int(failed)
        if failed:
            closed.wait(_SECONDS_BETWEEN * 2)


def _explain(address: str, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return (
        f"MLflow at {without_password(address)} does not take this run "
        f"({type(error).__name__}: {lines[0][:200].replace(address, without_password(address))}); "
        "training goes on, and the same command sends the rest later"
    )


def _input_closed() -> threading.Event:
    """Set when the parent closes our input, or is gone."""
    closed = threading.Event()

    def wait() -> None:
        while os.read(0, 4096):  # nothing is ever sent
            pass
        closed.set()

    threading.Thread(target=wait, daemon=True).start()
    return closed


if __name__ == "__main__":
    os.nice(10)  # whatever the workers want comes first
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    sys.exit(main(Path(sys.argv[1]), os.environ[VARIABLE]))
