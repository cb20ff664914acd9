"""The guard: where loss, gradient or weights are no finite numbers, back to the last good checkpoint and on without that batch.

::

    a meeting finds it                    all workers raise Broken after the same step
    -> the newest checkpoint, or the beginning where there is none
       one step at a time, loss and gradient of each looked at
    -> this step's batch breaks it        back again, and on without that batch
       nothing breaks                     the machine's fault, and over

Nothing else differs: rates, seeds and samples belong to step numbers, and a step that is left out keeps its number.
So what follows equals, bit for bit, a training that never took that batch. `Progress.skipped` is what a resume needs
to know. Where two batches in a row break the same weights, the weights are the cause; then, and after
``train.max_skips`` batches, it is an error, as it is at once with ``train.on_nan = "stop"``.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec
import numpy as np
from msgspec.structs import replace

from modelyard.backends.base import Backend, State
from modelyard.data.cursor import Cursor
from modelyard.data.dataset import Split
from modelyard.spec.errors import TrainingError
from modelyard.spec.records import AnyEvent, Noticed, WentBack
from modelyard.spec.training import TrainSection
from modelyard.spec.work import World
from modelyard.store.events import now
from modelyard.training import checkpoints
from modelyard.training.checkpoints import BrokenWeights, Progress
from modelyard.training.meeting import Window
from modelyard.training.saving import Writer
from modelyard.training.schedules import learning_rate

_MOST_SEARCHES = 3
"""Times that nothing was found in a second look, before that is taken for an answer."""


class Broken(Exception):
    """Raised by all workers after the same step."""

    def __init__(self, what: str, step: int, progress: Progress, *, batch: bool) -> None:
        """``step``, from 0, is where it was seen; ``batch``: seen in the loss or gradient of that step's batch."""
        super().__init__(what)
        self.what, self.step, self.progress, self.batch = what, step, progress, batch


class Guarded(msgspec.Struct, frozen=True, kw_only=True):
    """What the guard must know of a training."""

    folder: Path
    section: TrainSection
    steps: int
    world: World
    backend: Backend
    cursor: Cursor
    train: Split
    emit: Callable[[AnyEvent], None]
    begin: Callable[[], State] | None
    """Makes the state from which training began; None: without a checkpoint there is no way back."""


class Guard:
    """One worker's; all of them come to the same decisions."""

    def __init__(self, guarded: Guarded) -> None:
        self._of = guarded
        self._watched_until = 0
        """Up to this step, one at a time."""
        self._searches = 0

    @property
    def watching(self) -> bool:
        return self._watched_until > 0

    def limited(self, start: int, end: int) -> int:
        """Where the window that begins at step ``start`` ends."""
        if start >= self._watched_until > 0:
            self._tell(f"up to step {start} nothing was wrong this time: no batch is left out")
            self._watched_until = 0
        return min(end, start + 1) if self.watching else end

    def look(self, window: Window, taken: Sequence[int], progress: Progress) -> None:
        """After a meeting; ``taken`` are the window's steps. Raises Broken, the same on all workers."""
        if window.broken_after is not None:
            raise Broken("the loss", taken[window.broken_after], progress, batch=True)
        if window.bad_gradient:
            raise Broken("the gradient", taken[-1], progress, batch=True)
        if window.bad_weights:
            raise Broken("a weight", progress.step - 1, progress, batch=False)

    def settle(self, writer: Writer, progress: Progress) -> None:
        """At the end: all checkpoints are there. Raises Broken where one was refused, on all workers."""
        if self._of.backend.reduce(np.array([float(_refused(writer))]))[0]:
            raise Broken("a weight", progress.step - 1, progress, batch=False)

    def back(self, broken: Broken, writer: Writer, state: State) -> tuple[State, Progress]:
        """The state and progress to go on from. Raises TrainingError where there is no sense in that."""
        of, skipped = self._of, broken.progress.skipped
        _refused(writer)  # what was being written may be the newest good checkpoint
        of.backend.reduce(
            np.zeros(1)
        )  # nobody writes any more: what lies there half can be swept away
        if of.section.on_nan == "stop":
            self._give_up(broken)
        chosen = self._newest()
        if chosen < 0 and of.begin is None:
            self._give_up(broken)
        since = range(max(chosen, 0), broken.step)
        if broken.batch and (self.watching or all(step in skipped for step in since)):
            if broken.step - 1 in skipped:
                self._give_up(
                    broken, "nor was it with the batch of the step before: it is the weights"
                )
            if len(skipped) >= of.section.max_skips:
                more = (
                    f"; train.max_skips (now {of.section.max_skips}) lets more batches be left out"
                )
                self._give_up(broken, self._common((*skipped, broken.step)), more)
            skipped, self._watched_until = (*skipped, broken.step), 0
            self._searches = 0
            self._went_back(broken, max(chosen, 0), skipped=broken.step)
        else:
            self._searches += 1
            if (self.watching and not broken.batch) or self._searches > _MOST_SEARCHES:
                self._give_up(broken, "in a second look no batch was to blame")
            self._watched_until = broken.step + 1
            self._went_back(broken, max(chosen, 0), skipped=None)
        state, progress = self._restored(chosen, state)
        return state, replace(progress, skipped=skipped, seconds=broken.progress.seconds)

    def _newest(self) -> int:
        """Step of the newest whole checkpoint, as worker 0 finds it; -1: there is none."""
        of, step = self._of, 0
        if of.world.rank == 0:
            checkpoints.sweep(of.folder)
            newest, passed_over = checkpoints.latest(of.folder)
            for message in passed_over:
                self._tell(message)
            step = -1 if newest is None else newest.step
        return round(float(of.backend.reduce(np.array([float(step)]))[0]))

    def _restored(self, chosen: int, state: State) -> tuple[State, Progress]:
        of = self._of
        if chosen < 0:
            assert of.begin is not None
            return of.begin(), Progress()
        folder = checkpoints.folder_of(of.folder, chosen)
        snapshot, progress = checkpoints.load(checkpoints.found(folder))
        return of.backend.restore(state, snapshot), progress

    def _went_back(self, broken: Broken, step: int, *, skipped: int | None) -> None:
        if self._of.world.rank == 0:
            detail = "" if skipped is None else self._largest(skipped)
            self._of.emit(
                WentBack(
                    time=now(),
                    attempt=self._of.world.attempt,
                    step=step,
                    fault=broken.step,
                    skipped=skipped,
                    reason=f"{broken.what} was not a finite number{detail}",
                )
            )

    def _tell(self, message: str) -> None:
        if self._of.world.rank == 0:
            self._of.emit(Noticed(time=now(), attempt=self._of.world.attempt, message=message))

    def _largest(self, step: int) -> str:
        """The largest value that the batch holds, which is where one looks first."""
        of = self._of
        positions = of.cursor.indices(step)
        inputs, _ = of.train.stored(positions)
        if inputs.dtype.kind != "f":
            return ""
        flat = np.abs(inputs.reshape(len(inputs), -1)).max(axis=1)
        worst = int(flat.argmax())
        row = int(of.train.positions[positions[worst]])
        return f"; the largest value in it is {flat[worst]:.3g}, of sample {row}"

    def _common(self, steps: Sequence[int]) -> str:
        """The samples that are in all of these batches: one of them may be what breaks each."""
        of = self._of
        words = f"the batches of steps {', '.join(str(step + 1) for step in steps[:-1])} were left out before"
        shared = set.intersection(*(set(of.cursor.indices(step).tolist()) for step in steps))
        rows = sorted(int(of.train.positions[place]) for place in shared)
        if not rows or len(rows) > 3:
            return words
        named = ", ".join(map(str, rows))
        return f"{words}; sample{'s' * (len(rows) > 1)} {named} of the data {'are' if len(rows) > 1 else 'is'} in all"

    def _give_up(self, broken: Broken, more: str = "", mend: str = "") -> NoReturn:
        of, step = self._of, broken.step
        rate = learning_rate(
            of.section,
            step,
            of.steps,
            steps_per_epoch=of.cursor.samples / of.cursor.batch_size,
            reductions=broken.progress.reductions,
        )
        good, _ = checkpoints.latest(of.folder)
        kept = (
            f"the last good checkpoint is of step {good.step}" if good else "there is no checkpoint"
        )
        first = step  # of those in a row that the same weights could not take
        while first - 1 in broken.progress.skipped:
            first -= 1
        raise TrainingError(
            f"{broken.what} was not a finite number at step {first + 1} "
            f"(epoch {of.cursor.epoch(first):.2f}, learning rate {rate:.3g})"
            f"{', ' if more else ''}{more}; {kept}",
            f"use a smaller train.optimizer.lr (now {of.section.optimizer.lr:g}), set train.clip_norm = 1.0, "
            f"or look for extreme values in the data{mend}",
        )


def _refused(writer: Writer) -> bool:
    """Wait for what is being written; True where it held a weight that is no finite number."""
    try:
        writer.wait()
    except BrokenWeights:
        return True
    return False
