"""The optional MLflow sink, as its parent sees it: a process beside the training that reads its event log.

It is a process of its own, so that a slow or dead server can neither slow nor break a training: the
parent starts it, and at the end gives it a few seconds to send the rest. What was not sent stays in
the event log, with the place from which to go on, and goes with the next command on the run.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import msgspec

from modelyard.spec.errors import MissingExtraError, from_os_error
from modelyard.spec.project import Project
from modelyard.spec.records import Noticed, Record
from modelyard.store.events import EventLog, now
from modelyard.training.order import EVENTS

STATE, LOG = "tracking.json", "tracking.log"
VARIABLE = "MLFLOW_TRACKING_URI"
_LAST_WORD_SECONDS = 15.0


class Tracking(Record, frozen=True, kw_only=True):
    """``tracking.json``: where a run is written to, and how much of its event log is there."""

    address: str
    """Without a password."""
    run: str
    """MLflow's id of the run."""
    position: int = 0
    """Bytes of the event log that were sent."""


def address_of(project: Project) -> str:
    """Where trainings of ``project`` are tracked; empty: nowhere."""
    return project.track.mlflow or os.environ.get(VARIABLE, "")


def without_password(address: str) -> str:
    """``http://name:word@host`` -> ``http://host``: what may stand in a file or a message."""
    parts = urlsplit(address)
    if "@" not in parts.netloc:
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


@contextlib.contextmanager
def tracked(project: Project, folder: Path) -> Iterator[None]:
    """Track the run in ``folder`` while the block runs.

    Raises MissingExtraError where the project asks for MLflow and it is not installed; where only
    the variable asks for it, that is a notice.
    """
    address = address_of(project)
    if not address or not _is_installed(project, folder):
        yield
        return
    process = _start(address, folder, project.root)
    try:
        yield
    finally:
        _end(process)


def send_rest(project: Project, folder: Path) -> None:
    """Of a run that is complete: send what did not arrive when it was trained, if anything."""
    address = address_of(project)
    if not address or find_spec("mlflow") is None:
        return
    state = read_state(folder)
    size = (folder / EVENTS).stat().st_size if (folder / EVENTS).exists() else 0
    known = state is not None and state.address == without_password(address)
    if state is None or not known or state.position < size:
        _end(_start(address, folder, project.root))


def read_state(folder: Path) -> Tracking | None:
    """None where nothing was tracked yet, or the file is damaged: MLflow is then asked for the run."""
    try:
        return Tracking.from_json((folder / STATE).read_bytes())
    except (OSError, msgspec.DecodeError):
        return None


def notice(folder: Path, message: str) -> None:
    """One line for people, in the event log."""
    log = EventLog(folder / EVENTS)
    try:
        log.append(Noticed(time=now(), message=message))
    finally:
        log.close()


def _is_installed(project: Project, folder: Path) -> bool:
    if find_spec("mlflow") is not None:
        return True
    if project.track.mlflow:
        raise MissingExtraError("track.mlflow needs MLflow's client", "mlflow")
    notice(folder, f"{VARIABLE} is set, but MLflow's client is not installed; nothing is tracked")
    return False


def _start(address: str, folder: Path, root: Path) -> subprocess.Popen[bytes]:
    """The address travels in the environment: command lines are there for everyone to read."""
    command = [sys.executable, "-m", "modelyard.training.mlflow_sink", str(folder.resolve())]
    try:
        with (folder / LOG).open("wb") as log:
            return subprocess.Popen(
                command,
                cwd=root,
                env={**os.environ, VARIABLE: address},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the training; this one has the last word
            )
    except OSError as error:
        raise from_os_error(error) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """Closing its input tells it that nothing more comes."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(_LAST_WORD_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    except BaseException:  # a second Ctrl-C: nothing is lost, it is sent the next time
        process.kill()
        process.wait()
        raise
