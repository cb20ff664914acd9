"""Every error a user can meet, each with what happened and how to mend it.

YardError
├── ProjectError            the project file or an override is wrong          exit code 2
├── UsageError              the command was called in a way it cannot answer   exit code 2
│   └── UnknownMetric           a task has no metric of that name
├── DataError               the data cannot be read or does not fit the task
├── ModelError              the user's model cannot be built or does not fit the task
├── TrainingError           training ended without a result
│   ├── OutOfMemory             a worker's device has not enough memory for its samples
│   ├── PeerLost                another worker ended first: never the cause, only what follows from it
│   └── TrainingInterrupted     someone asked it to stop; it can go on later        exit code 130
├── ExportError             the model could not be exported, or parity failed
├── StoreError              the store cannot be read or written (permission, damage)
│   └── DiskFull                no space is left on the device, or none for this user
├── NotFoundError           a run, model, deployment … of that name does not exist
├── ServingError            the inference server cannot start
│   └── RequestError        one request is wrong; the protocol chooses the wire code
├── DeploymentError         a service could not be brought up, changed or removed
└── MissingExtraError       an optional dependency is not installed
"""

import difflib
import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from modelyard.spec.disk import room_at

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = (*map(os.strerror, _FULL), "database or disk is full")
"""How libraries say it that keep the system's number to themselves: torch, safetensors, TensorFlow; SQLite."""
_MORE_ROOM = "free some space there and run the command again; nothing was lost"


class YardError(Exception):
    """What happened (one sentence) and the mend (what to do about it), for people."""

    exit_code = 1

    def __init__(self, what: str, mend: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.what}\n  mend: {self.mend}" if self.mend else self.what


@dataclass(frozen=True)
class Mistake:
    """One mistake of a project: where it is, what is wrong there and what was expected."""

    where: str
    """Dotted path of the field, e.g. ``train.optimizer.lr``."""
    problem: str
    """What is wrong with the value, e.g. ``'fast' is not a number``."""
    expected: str = ""
    suggestion: str = ""
    """The nearest correct word, for a "did you mean"."""
    source: str = ""
    """``yard.toml``, ``command line``, ``environment`` or ``python``."""
    line: int | None = None
    """1-based line in the project file, where the mistake is in the file."""

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}"
        text = f"{place}: {self.where}: {self.problem}"
        if self.expected:
            text += f"; expected {self.expected}"
        if self.suggestion:
            text += f"; did you mean {self.suggestion!r}?"
        return text


class ProjectError(YardError):
    """All mistakes of a project at once."""

    exit_code = 2

    def __init__(self, mistakes: Iterable[Mistake], mend: str = "") -> None:
        self.mistakes = tuple(mistakes)
        count = len(self.mistakes)
        heading = f"{count} mistake{'s' if count != 1 else ''} in the project:"
        super().__init__("\n".join([heading, *(f"  {mistake}" for mistake in self.mistakes)]), mend)


class UsageError(YardError):
    """The command was called in a way it cannot answer."""

    exit_code = 2


class UnknownMetric(UsageError):
    """A task has no metric of that name."""

    def __init__(self, task: str, metric: str, known: Iterable[str]) -> None:
        self.known = tuple(known)
        self.suggestion = nearest(metric, self.known)
        self.problem = f"{metric!r} is not a metric of this {task}"
        hint = f"; did you mean {self.suggestion!r}?" if self.suggestion else ""
        super().__init__(self.problem + hint, f"use one of: {', '.join(self.known)}")


class DataError(YardError):
    """The data cannot be read or does not fit the task."""


class ModelError(YardError):
    """The user's model cannot be built or does not fit the task."""


class TrainingError(YardError):
    """Training ended without a result."""


class OutOfMemory(TrainingError):
    """A worker's device has not enough memory; fewer samples at once may fit."""

    def __init__(self, what: str, mend: str = "", device: str = "") -> None:
        super().__init__(what, mend)
        self.device = device
        """Its kind and memory, in a backend's words: what did not fit here is remembered for it."""


class PeerLost(TrainingError):
    """Another worker is gone; that one knows why, or what ended it does."""


class TrainingInterrupted(TrainingError):
    """Someone asked training to stop (Ctrl-C, SIGTERM); the same command goes on from a checkpoint."""

    exit_code = 130


class ExportError(YardError):
    """The model could not be exported, or the exported one does not give the same answers."""


class StoreError(YardError):
    """The store cannot be read or written."""


class DiskFull(StoreError):
    """No space is left on the device, or none for this user; with more room the same command goes on."""


class NotFoundError(YardError):
    """A run, model, deployment or file of that name does not exist."""


class ServingError(YardError):
    """The inference server cannot start or answer."""


class RequestError(ServingError):
    """One request is wrong; each protocol chooses its own wire code for it."""


class DeploymentError(YardError):
    """A service could not be brought up, changed or removed."""


class MissingExtraError(YardError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(what, f"pip install 'modelyard[{extra}]'")
        self.extra = extra


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice most like ``word``, or one that it abbreviates; an empty string where none is close."""
    known = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.55)
    if not matches and len(word) > 1:
        matches = [choice for choice in known if choice.startswith(word.lower())]
    return known[matches[0]] if matches else ""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``; did you mean 'x'?``, to stand behind what was said of ``word``; empty where no choice is close."""
    close = nearest(word, choices)
    return f"; did you mean {close!r}?" if close else ""


def from_os_error(error: OSError, writing: Path | None = None) -> YardError:
    """Turn an operating-system error into a StoreError that names the file and the mend.

    ``writing`` is the file or folder to name where the system does not: it never does for a failed write.
    """
    place = str(error.filename or writing or "the store")
    if error.errno in _FULL:
        return no_room(error.filename or writing, quota=error.errno == errno.EDQUOT)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(
            f"no permission to use {place}: {error.strerror}",
            "change the owner or mode of that folder, or choose another store with `store.url`",
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return StoreError(
            "too many open files", "raise the limit with `ulimit -n 4096` and run the command again"
        )
    return StoreError(
        f"{place}: {error.strerror or error}", "see `yard doctor` for the state of the store"
    )


def no_room(place: str | Path | None, *, quota: bool = False) -> DiskFull:
    """For ``place``, where that is known; ``quota``: there is none for this user."""
    whose, room = " for this user (a quota)" if quota else "", room_at(place) if place else ""
    return DiskFull(
        f"the disk is full{whose}: {place or 'the store'} could not be written"
        + (f"; {room}" if room else ""),
        _MORE_ROOM,
    )


def disk_full(error: BaseException, place: Path) -> DiskFull | None:
    """What to tell where a full disk is behind ``error``, however it was wrapped; None where it is not.

    ``place`` is what was being written, for an error that names no file.
    """
    for link in _chain(error):
        if isinstance(link, DiskFull):
            return link
        if isinstance(link, OSError) and link.errno in _FULL:
            return no_room(link.filename or place, quota=link.errno == errno.EDQUOT)
        if any(words in str(link) for words in _FULL_WORDS):
            said = link.what if isinstance(link, YardError) else f"{type(link).__name__}: {link}"
            return DiskFull(
                "; ".join(filter(None, (f"the disk is full: {said.strip()}", room_at(place)))),
                _MORE_ROOM,
            )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and all(link is not other for other in seen):
        seen.append(link)
        yield link
        link = link.__cause__ or link.__context__
