"""The batches of a training, in order, made in line or by a thread that works ahead of the step.

``BatchMaker`` makes the batch of any step; what it gives depends on nothing else. ``Feed`` asks it for
one step after the other. Where making is cheap, it happens in line: a thread that only takes turns
with the step costs more than it saves. Where it is not, a thread makes up to ``AHEAD`` batches in
advance and then waits for the step (backpressure). Which of the two is measured on the first steps.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from modelyard.data.augment import Augmentation, Samples
from modelyard.data.cursor import Cursor
from modelyard.data.dataset import Split
from modelyard.data.draws import sample_keys
from modelyard.data.mixing import Mix, mix, plan_mix
from modelyard.data.packed import PackedPictures
from modelyard.spec.training import AugmentSection

AHEAD = 3
"""Batches that the thread may be ahead of the step: two hide a slow one, more only take memory."""
_WARM_UP, _MEASURED = 4, 16
"""Steps that are left out of the measure (memory, kernels), and steps that are measured, of each way."""
_CHEAP, _GAIN = 0.05, 0.03
"""Making is left in line below this share of the time; the thread must save at least that one."""
_PLANNED = 2**13
"""Samples whose places are looked up at once."""
_PLANNED_BYTES = 2**26
"""And at most as many bytes of them."""
_PLAIN = AugmentSection()


class Made(NamedTuple):
    """One worker's share of a global batch, in the form of ``Split.stored``; the arrays are its own."""

    inputs: NDArray[Any]
    targets: NDArray[Any]
    other_targets: NDArray[Any] | None = None
    weight: NDArray[np.float32] | None = None
    """Share of ``targets`` in each sample's loss, where samples are blends."""


class _Part(NamedTuple):
    """Steps from ``first`` on, one entry each."""

    first: int
    positions: Sequence[NDArray[np.int64]]
    """In the split."""
    rows: Sequence[NDArray[np.int64]]
    """In the dataset's arrays."""
    targets: Sequence[NDArray[Any]]


class BatchMaker:
    """Worker ``rank`` of ``size``: the samples of a step, varied as ``augment`` asks."""

    def __init__(
        self,
        split: Split,
        cursor: Cursor,
        *,
        rank: int = 0,
        size: int = 1,
        augment: AugmentSection = _PLAIN,
    ) -> None:
        self._split, self._cursor = split, cursor
        self._rank, self._size = rank, size
        self._section = augment
        self._augmentation = Augmentation(augment, split.spec)
        self._mixes = bool(augment.mixup or augment.cutmix)
        self._part = _Part(0, (), (), ())
        self._following: _Part | None = None
        """The part after ``_part``, where it was planned already."""
        self._begins = isinstance(split.inputs, PackedPictures)
        self._begun = 0
        """The step before which all is begun."""

    def make(self, step: int) -> Made:
        """The same for the same step, whenever and wherever it is asked for."""
        if self._begins:
            self._begin(step)
        if self._mixes:
            return self._mixed(step)
        place = step - self._part.first
        if not 0 <= place < len(self._part.rows):
            self._part, place = self._next_part(step), 0
        part = self._part
        inputs = self._split.stored_inputs(part.rows[place])
        if self._augmentation.active:
            positions = part.positions[place]
            places = self._start() + np.arange(len(positions))
            inputs = self._varied(step, places, positions, inputs)
        return Made(inputs, part.targets[place])

    def _next_part(self, step: int) -> _Part:
        """From ``step`` on. Where the data is on a disk that can be told, the part after it is fetched meanwhile."""
        readahead, following = self._split.readahead, self._following
        if readahead is None:
            return self._plan(step)
        if following is not None and following.first == step:
            part = following
        else:
            part = self._plan(step)
            readahead.advise(np.concatenate(part.rows))
        self._following = self._plan(step + len(part.rows))
        readahead.advise(np.concatenate(self._following.rows))
        return part

    def _plan(self, step: int) -> _Part:
        """What can be looked up for many steps at once: between two steps each call is a slow one."""
        cursor, split = self._cursor, self._split
        samples = _PLANNED
        if split.readahead is not None:  # two parts of them are in memory at once
            samples = min(samples, _PLANNED_BYTES // split.readahead.row_bytes)
        count = max(1, samples // max(1, cursor.batch_size // self._size))
        shares = [cursor.share(step + n, self._rank, self._size) for n in range(count)]
        rows = split.positions.take(np.stack(shares))
        return _Part(step, shares, list(rows), list(split.targets.take(rows, axis=0)))

    def _begin(self, step: int) -> None:
        """Have this step's samples and those of the next ones decoded, beside what the caller computes."""
        if not self._begun - AHEAD - 1 <= step <= self._begun:  # a jump
            self._split.forget()
            self._begun = step
        for coming in range(self._begun, step + AHEAD + 1):
            if self._mixes:
                samples = self._mixing(coming)[1]
            else:
                samples = self._cursor.share(coming, self._rank, self._size)
            self._split.begin(self._split.positions.take(samples))
        self._begun = step + AHEAD + 1

    def _mixing(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Mix]:
        """Own samples and their partners, which may be other workers': places in the batch, samples, and how."""
        batch = self._cursor.batch_size
        plan = plan_mix(self._section, self._cursor.seed, step, batch)
        own = self._own()
        places = own if len(own) == batch else np.union1d(own, plan.partner[own])
        return places, self._cursor.indices(step)[places], plan

    def _mixed(self, step: int) -> Made:
        places, samples, plan = self._mixing(step)
        own = self._own()
        count, batch, partner = len(own), self._cursor.batch_size, plan.partner[own]
        inputs, targets = self._split.stored(samples)
        inputs = self._varied(step, places, samples, inputs)
        mine, theirs = np.searchsorted(places, own), np.searchsorted(places, partner)
        first = inputs if count == batch else inputs[mine]
        blend, weight = mix(first, inputs[theirs], plan, own)
        return Made(blend, targets[mine], targets[theirs], weight)

    def _varied(
        self,
        step: int,
        places: NDArray[np.int64],
        samples: NDArray[np.int64],
        inputs: Samples,
    ) -> Samples:
        """The samples at these places of the global batch, each by the draws of its epoch."""
        if not self._augmentation.active:
            return inputs
        cursor = self._cursor
        epochs = (step * cursor.batch_size + places) // cursor.samples
        return self._augmentation.apply(inputs, sample_keys(cursor.seed, epochs, samples))

    def _start(self) -> int:
        """This worker's first place in the global batch, as ``Cursor.share`` cuts it."""
        base, larger = divmod(self._cursor.batch_size, self._size)
        return self._rank * base + min(self._rank, larger)

    def _own(self) -> NDArray[np.int64]:
        """This worker's places in the global batch."""
        base, larger = divmod(self._cursor.batch_size, self._size)
        return np.arange(self._start(), self._start() + base + (self._rank < larger))


class Feed:
    """A context that hands out one batch after the other, from step ``start`` on."""

    def __init__(self, maker: BatchMaker, *, start: int = 0, ahead: int | None = None) -> None:
        """``ahead``: batches made in advance by a thread; 0: in line; None: what the measure says."""
        self._maker, self._step = maker, start
        self._choice = Choice() if ahead is None else None
        self._ahead = AHEAD if ahead is None else ahead
        self._thread: _Thread | None = None
        if ahead:
            self._thread = _Thread(maker, start, ahead)
        self.waited = 0.0
        """Seconds that steps have waited for their data."""

    def take(self, step: int) -> Made:
        """The batch of ``step``. Whatever the making raised is raised here, as it is."""
        began = time.perf_counter()
        if step != self._step and self._thread is not None:  # a jump: what lies ready is of no use
            self._in_line()
            self._thread = _Thread(self._maker, step, self._ahead)
        self._step = step + 1
        made = self._maker.make(step) if self._thread is None else self._thread.take()
        ended = time.perf_counter()
        self.waited += ended - began
        if self._choice is not None:
            self._choose(self._choice, began, ended - began)
        return made

    @property
    def ahead(self) -> bool:
        """True while a thread makes the batches."""
        return self._thread is not None

    def close(self) -> None:
        """End the thread, if there is one, and wait for it."""
        self._in_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _choose(self, choice: "Choice", began: float, wait: float) -> None:
        ahead = choice.after(began, wait)
        if ahead and self._thread is None:
            self._thread = _Thread(self._maker, self._step, self._ahead)
        elif not ahead:
            self._in_line()
        if choice.settled:
            self._choice = None

    def _in_line(self) -> None:
        if self._thread is not None:
            self._thread.end()
            self._thread = None


class Choice:
    """In line, or ahead? Steps are timed in line; where making takes long, as many are timed ahead.

    Medians, so that an evaluation or a checkpoint between two steps does not count.
    """

    def __init__(self) -> None:
        self._began: list[float] = []
        self._waits: list[float] = []
        self._in_line: float | None = None
        """Seconds a step takes in line, once that is known."""
        self.settled = False

    def after(self, began: float, wait: float) -> bool:
        """Told when a step began to wait for its data and for how long; True: work ahead."""
        self._began.append(began)
        self._waits.append(wait)
        if len(self._began) <= _WARM_UP + _MEASURED:
            return self._in_line is not None
        starts = self._began[_WARM_UP:]
        period = median(after - before for before, after in pairwise(starts))
        if self._in_line is not None:
            self.settled = True
            return period < (1 - _GAIN) * self._in_line
        self.settled = median(self._waits[_WARM_UP:]) < _CHEAP * period
        if not self.settled:
            self._in_line = period
            self._began, self._waits = [], []
        return not self.settled


class _Thread:
    """Makes batches one after the other, at most ``ahead`` more than were taken."""

    def __init__(self, maker: BatchMaker, start: int, ahead: int) -> None:
        self._maker = maker
        self._ready: deque[Made | BaseException] = deque()
        self._made, self._room = threading.Semaphore(0), threading.Semaphore(ahead)
        self._ended = False
        self._thread = threading.Thread(target=self._run, args=(start,), name="feed", daemon=True)
        self._thread.start()

    def take(self) -> Made:
        self._made.acquire()
        made = self._ready.popleft()
        if isinstance(made, BaseException):
            self._ready.append(made)  # there will be no other: say it again to who asks again
            self._made.release()
            raise made
        self._room.release()
        return made

    def end(self) -> None:
        self._ended = True
        self._room.release()
        self._thread.join()

    def _run(self, step: int) -> None:
        while True:
            self._room.acquire()
            if self._ended:
                return
            try:
                made: Made | BaseException = self._maker.make(step)
            except BaseException as error:  # noqa: BLE001  it is raised where the batch is taken
                made = error
            self._ready.append(made)
            self._made.release()
            if isinstance(made, BaseException):
                return
            step += 1
