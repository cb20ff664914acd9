"""The moving average of weights, for every framework: how much of a step's weights goes in, and which of the two are in place.

After each step ``average <- average + share * (weights - average)``. Averages of the weights that SGD passes
through generalise better than the last ones (Polyak & Juditsky, SIAM J. Control Optim. 1992; Izmailov et
al., UAI 2018). ``share`` is ``1 - min(decay, (1 + t) / (10 + t))`` after ``t`` steps, the warm-up of TensorFlow's
``ExponentialMovingAverage(num_updates=t)``: with 0.999 alone the first weights would still weigh a third after a
thousand steps, and a bias correction would average a short training over all its steps, the worst ones too.

Running statistics of norms are not averaged but those of the training: they are moving averages themselves, of
what the layers have just seen, and counters among them have no mean.
"""

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from modelyard.backends.base import Snapshot

PREFIX, COUNT = "ema.", "averaged"
"""Tensors of a snapshot that hold averages, and its number of steps that went in."""


def share_after(decay: float, count: int) -> float:
    """How much of the new weights goes into the average, after ``count`` steps did."""
    return 1.0 - min(decay, (1 + count) / (10 + count))


class Counted:
    """How many steps are in an average."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self.count = 0

    def next_share(self) -> float:
        """Of the weights that a step has just made; counts them."""
        self.count += 1
        return share_after(self._decay, self.count - 1)


class Average(Counted):
    """An average that changes places with the weights of a model, which holds the one or the other."""

    def __init__(
        self, decay: float, follow: Callable[[float], None], exchange: Callable[[], None]
    ) -> None:
        """``follow`` puts a share of the weights into the average; ``exchange`` swaps the two."""
        super().__init__(decay)
        self._follow, self._exchange = follow, exchange
        self._shown = False

    def follow(self) -> None:
        """After a step, with the trained weights in place."""
        self._follow(self.next_share())

    def show(self) -> None:
        """Put the average in place: to be judged or exported."""
        if not self._shown:
            self._exchange()
            self._shown = True

    def hide(self) -> None:
        """Put the trained weights in place."""
        if self._shown:
            self._exchange()
            self._shown = False


def averages_in(
    snapshot: Snapshot, names: Mapping[str, Any]
) -> tuple[dict[str, NDArray[Any]], int]:
    """What an average goes on from: that of ``snapshot``, else its weights; and how many steps are in it."""
    held = {name: snapshot.tensors.get(PREFIX + name) for name in names}
    if any(array is None for array in held.values()):
        return {name: snapshot.tensors[f"model.{name}"] for name in names}, 0
    found = {name: array for name, array in held.items() if array is not None}
    return found, int(snapshot.numbers.get(COUNT, 0))
