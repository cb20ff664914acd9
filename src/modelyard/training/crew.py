"""How many workers the next attempt has, where ``train.workers`` is a range such as ``1:4``: a policy that only decides.

A worker that is lost is replaced at once. One that is lost a second time with no new checkpoint in
between cannot be brought back for now: training goes on without it, down to the fewest. After a while,
and once there is a new checkpoint, the workers part in good order and all come back; where that fails
again, the next try waits twice as long.
"""

from collections import Counter
from collections.abc import Iterable

from modelyard.spec.project import TrainSection
from modelyard.training.surroundings import available_cores

PATIENCE_SECONDS = 30.0
"""How long training goes on with fewer before it tries to have all of them again."""
_LOSSES = 2


class Crew:
    """The number of workers, from one attempt to the next."""

    def __init__(self, fewest: int, most: int, room: int, *, patience: float | None = None) -> None:
        """``room``: as many as this place can have at a time; never fewer than ``fewest`` are started."""
        self._fewest = fewest
        self._full = max(fewest, min(most, room))
        self._losses: Counter[int] = Counter()
        self._patience = PATIENCE_SECONDS if patience is None else patience
        self.size = self._full

    def lost(self, ranks: Iterable[int], *, progressed: bool) -> str:
        """Told who was lost, and whether there was a new checkpoint since the last loss; says what changes."""
        if progressed:
            self._losses.clear()
        self._losses.update(ranks)
        gone = [rank for rank, losses in self._losses.items() if losses >= _LOSSES]
        smaller = max(self._fewest, self.size - len(gone))
        if smaller == self.size:
            return ""
        self._losses.clear()
        self.size = smaller
        names = ", ".join(str(rank) for rank in sorted(gone))
        return (
            f"worker {names} was lost twice without a checkpoint in between: going on with "
            f"{smaller} of {self._full} workers; another try in {self._patience:g} s"
        )

    def may_grow(self, seconds: float) -> bool:
        """After ``seconds`` with fewer; a checkpoint since then is the caller's to look for."""
        return self.size < self._full and seconds >= self._patience

    def grow(self) -> str:
        """All of them again."""
        before, self.size = self.size, self._full
        self._patience *= 2
        return f"back from {before} to {self._full} workers"


def crew_of(section: TrainSection) -> Crew:
    """At first as many as there are cores for."""
    return Crew(section.fewest_workers, section.most_workers, available_cores())
