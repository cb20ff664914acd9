"""How many workers the next attempt has, where ``train.workers`` is a range such as ``1:4``: a policy that only decides.

A worker that is lost is replaced at once. One that is lost a second time with no new checkpoint in
between cannot be brought back for now: training goes on without it, down to the fewest. After a while,
and once there is a new checkpoint, the workers part in good order and all come back; where that fails
again, the next try waits twice as long.

There are never more than there is room for (cores of this process: fewer in a container, under
taskset or a quota). Room is looked at all the time: where it returns and stays for a moment, the workers part
in the same good order, and as many come back as there is room for.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable

from modelyard.spec.cores import available_cores
from modelyard.spec.training import TrainSection

PATIENCE_SECONDS = 30.0
"""How long training goes on with fewer before it tries to have all of them again."""
STEADY_SECONDS = 5.0
"""How long there must be room for more: a restart is not worth it for a moment's."""
_LOSSES = 2


class Crew:
    """The number of workers, from one attempt to the next."""

    def __init__(
        self, fewest: int, most: int, room: Callable[[], int], *, patience: float | None = None
    ) -> None:
        """``room``: as many as this place can have now; never fewer than ``fewest`` are started."""
        self._fewest, self._most, self._room = fewest, most, room
        self._losses: Counter[int] = Counter()
        self._patience = PATIENCE_SECONDS if patience is None else patience
        self._lost_some = False
        """Fewer because some could not be brought back, not for want of room."""
        self._room_since: float | None = None
        self.size = self._full()

    def _full(self) -> int:
        return max(self._fewest, min(self._most, self._room()))

    def lost(self, ranks: Iterable[int], *, progressed: bool) -> str:
        """Told who was lost, and whether there was a new checkpoint since the last loss; says what changes."""
        if progressed:
            self._losses.clear()
        self._losses.update(ranks)
        gone = [rank for rank, losses in self._losses.items() if losses >= _LOSSES]
        smaller, full = max(self._fewest, self.size - len(gone)), self._full()
        if min(smaller, full) == self.size:
            return ""
        self._losses.clear()
        if full < smaller:
            before, self.size = self.size, full
            return f"there is room for {full} now: going on with {full} of {before} workers"
        self.size, self._lost_some = smaller, True
        names = ", ".join(str(rank) for rank in sorted(gone))
        return (
            f"worker {names} was lost twice without a checkpoint in between: going on with "
            f"{smaller} of {full} workers; another try in {self._patience:g} s"
        )

    def may_grow(self, seconds: float) -> bool:
        """After ``seconds`` with fewer; a checkpoint since then is the caller's to look for."""
        now = time.monotonic()
        if self.size >= self._most or self.size >= self._full():
            self._room_since = None
            return False
        if self._room_since is None:
            self._room_since = now
        if self._lost_some:
            return seconds >= self._patience
        return now - self._room_since >= STEADY_SECONDS

    def grow(self) -> str:
        """As many as there is room for."""
        before, self.size, self._room_since = self.size, self._full(), None
        if not self._lost_some:
            return f"there is room for more: from {before} to {self.size} workers"
        self._lost_some = False
        self._patience *= 2
        return f"back from {before} to {self.size} workers"


def crew_of(section: TrainSection) -> Crew:
    """At first as many as there are cores for."""
    return Crew(section.fewest_workers, section.most_workers, available_cores)
