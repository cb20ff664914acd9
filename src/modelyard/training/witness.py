"""A witness for proofs: what each worker's steps were really given, sample by sample, and the loss that came out.

It stands between the loop and the backend, so that it sees what no computation of the order would: a
batch left out, taken twice or varied in another way. Each step is one write into
``workers/attempt-N/taken-RANK``: a worker that is killed leaves all the steps that it has done.
"""

import hashlib
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelyard.backends.base import Backend, Batch, State, StepResult, StepSettings
from modelyard.spec.records import AnyEvent, RunStarted
from modelyard.training.order import attempt_folder

_STEP = struct.Struct("<qqdBB")
_DIGEST = 8
_TRIED = 64


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """One step, of one worker or of all."""

    samples: tuple[bytes, ...]
    """A digest of each sample with its target, as the backend was given it; of all workers in their order."""
    loss: float
    """Of the global batch; of one worker: its share."""
    draws: bool = False
    """The same samples got other answers the second time; only tried where the model was to be held still."""
    still: bool = False
    """The backend could hold the model still."""


class Witness:
    """Takes a backend's place: the same in all, and writes down what ``step`` is given."""

    def __init__(
        self,
        backend: Backend,
        file: Path,
        place: Callable[[], int],
        *,
        still: bool = False,
        tries: bool = False,
    ) -> None:
        """``place`` says which step the loop is at; ``tries``: find out at the first step whether it draws."""
        self._backend, self._place = backend, place
        self._still, self._tries, self._draws = still, tries, False
        # Never buffered: what a killed worker has done must be there.
        self._file = file.open("ab", buffering=0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def step(self, state: State, batch: Batch, settings: StepSettings) -> tuple[State, StepResult]:
        if self._tries:
            self._tries = False
            self._draws = _draws(self._backend, state, batch.inputs)
        samples = digests(batch)
        state, result = self._backend.step(state, batch, settings)
        head = _STEP.pack(self._place(), len(samples), float(result.loss), self._draws, self._still)
        self._file.write(head + b"".join(samples))
        return state, result


def watched(
    backend: Backend, file: Path, place: Callable[[], int], *, still: bool, tries: bool
) -> Backend:
    """``backend`` with a witness."""
    return cast("Backend", Witness(backend, file, place, still=still, tries=tries))


def digests(batch: Batch) -> tuple[bytes, ...]:
    """Of every sample with all that belongs to it."""
    parts = [batch.inputs, batch.targets, batch.other_targets, batch.weight]
    arrays = [np.ascontiguousarray(part) for part in parts if part is not None]
    return tuple(
        hashlib.blake2b(
            b"".join(array[place].tobytes() for array in arrays), digest_size=_DIGEST
        ).digest()
        for place in range(len(batch.targets))
    )


def _draws(backend: Backend, state: State, inputs: NDArray[Any]) -> bool:
    """Whether the same samples get other answers the second time. Every worker must call it."""
    few = inputs[: min(_TRIED, backend.evaluation_batch)]
    first, second = (backend.evaluate(state, few) for _ in range(2))
    return not np.allclose(first, second, rtol=1e-4, atol=1e-5)


def taken_file(run_folder: Path, attempt: int, rank: int) -> Path:
    return attempt_folder(run_folder, attempt) / f"taken-{rank}"


def seen(run_folder: Path, events: Sequence[AnyEvent]) -> dict[int, Taken]:
    """Of a run: every step that its last state rests on, as it was taken.

    What an attempt did after the checkpoint from which the next one went on, is lost and does not count.
    """
    found: dict[int, Taken] = {}
    for start in (event for event in events if isinstance(event, RunStarted)):
        found = {step: taken for step, taken in found.items() if step < start.step}
        found |= _of_attempt(run_folder, start.attempt, start.world_size)
    return found


def _of_attempt(run_folder: Path, attempt: int, size: int) -> dict[int, Taken]:
    shares = [_read(taken_file(run_folder, attempt, rank)) for rank in range(size)]
    whole: dict[int, Taken] = {}
    for step in sorted(set().union(*shares)):
        parts = [share[step] for share in shares if step in share]
        whole[step] = Taken(
            samples=tuple(sample for part in parts for sample in part.samples),
            loss=sum(part.loss for part in parts),
            draws=any(part.draws for part in parts),
            still=all(part.still for part in parts),
        )
    return whole


def _read(file: Path) -> dict[int, Taken]:
    """What a worker wrote; a line that a kill cut off is none."""
    content = file.read_bytes() if file.exists() else b""
    found: dict[int, Taken] = {}
    place = 0
    while place + _STEP.size <= len(content):
        step, count, loss, draws, still = _STEP.unpack_from(content, place)
        place += _STEP.size
        samples = tuple(
            content[at : at + _DIGEST] for at in range(place, place + count * _DIGEST, _DIGEST)
        )
        place += count * _DIGEST
        if place <= len(content):
            found[step] = Taken(samples=samples, loss=loss, draws=bool(draws), still=bool(still))
    return found
