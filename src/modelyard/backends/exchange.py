"""Sums over workers without a framework: NumPy arrays over sockets, always added in the same order.

Of ``size`` workers each holds a line to each other one. An array is cut into ``size`` parts; worker
*r* gets everybody's part *r*, adds them in the order of ranks and sends the sum to all. So each
number is added in one order, whatever the timing: the result is the same bits on every worker and
in every run. A worker that dies closes its lines, which the others notice at once.
"""

import contextlib
import itertools
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.backends.meeting_place import find_others
from modelyard.spec.errors import PeerLost
from modelyard.spec.work import World

_EXCHANGE_SECONDS = 600.0
"""How long one exchange may take; a worker that dies is noticed at once, this is for one that hangs."""
_SMALL = 16_384
"""Bytes up to which each sends all to all: one journey instead of two."""
_BUFFER = 4 << 20


class Exchange:
    """The lines of one worker to the others; with one worker there is nothing to send."""

    def __init__(self, world: World, lines: Mapping[int, socket.socket]) -> None:
        self._world, self._lines = world, dict(lines)
        self._poller = select.poll()
        self._ranks = {line.fileno(): rank for rank, line in self._lines.items()}
        for line in self._lines.values():
            line.setblocking(False)
            with contextlib.suppress(OSError):  # a Unix socket has no such option
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                line.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
            self._poller.register(line, 0)

    def add(self, array: NDArray[Any]) -> None:
        """Put the sum over all workers into ``array`` (contiguous, one shape on all). All must call it.

        Raises PeerLost where another worker is gone.
        """
        if self._world.size == 1 or not array.size:
            return
        flat = array.reshape(-1)
        if array.nbytes <= _SMALL:
            self._add_small(flat)
            return
        cuts = [len(flat) * place // self._world.size for place in range(self._world.size + 1)]
        parts = [flat[start:end] for start, end in itertools.pairwise(cuts)]
        mine = parts[self._world.rank]
        theirs = {rank: np.empty_like(mine) for rank in self._lines}
        self._swap({rank: parts[rank] for rank in self._lines}, theirs)
        mine[:] = self._sum(mine, theirs)
        self._swap(dict.fromkeys(self._lines, mine), {rank: parts[rank] for rank in self._lines})

    def copy_from_first(self, array: NDArray[Any]) -> None:
        """Put worker 0's values into ``array``, on every worker."""
        if self._world.rank == 0:
            self._swap(dict.fromkeys(self._lines, array.reshape(-1)), {})
        else:
            self._swap({}, {0: array.reshape(-1)})

    def close(self) -> None:
        for line in self._lines.values():
            line.close()
        self._lines = {}

    def _add_small(self, flat: NDArray[Any]) -> None:
        theirs = {rank: np.empty_like(flat) for rank in self._lines}
        self._swap(dict.fromkeys(self._lines, flat), theirs)
        flat[:] = self._sum(flat, theirs)

    def _sum(self, mine: NDArray[Any], theirs: Mapping[int, NDArray[Any]]) -> NDArray[Any]:
        everyones = [theirs.get(rank, mine) for rank in range(self._world.size)]
        total: NDArray[Any] = everyones[0] + everyones[1]
        for part in everyones[2:]:
            total += part
        return total

    def _swap(
        self, outgoing: Mapping[int, NDArray[Any]], incoming: Mapping[int, NDArray[Any]]
    ) -> None:
        """Send and receive beside each other, so that no two workers wait for each other's reading."""
        leaving = {rank: a.data.cast("B") for rank, a in outgoing.items() if a.size}
        coming = {rank: a.data.cast("B") for rank, a in incoming.items() if a.size}
        for rank in list(leaving):
            self._some(leaving, rank, self._lines[rank].send)
        deadline = time.monotonic() + _EXCHANGE_SECONDS
        while leaving or coming:
            for rank, line in self._lines.items():
                wanted = (select.POLLOUT if rank in leaving else 0) | (
                    select.POLLIN if rank in coming else 0
                )
                self._poller.modify(line, wanted)
            found = self._poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not found:
                late = ", ".join(str(rank) for rank in sorted({*leaving, *coming}))
                raise self._lost(f"nothing from worker {late} for {_EXCHANGE_SECONDS:.0f} s")
            for handle, _ in found:
                rank = self._ranks[handle]
                if rank in coming:
                    self._some(coming, rank, self._lines[rank].recv_into)
                if rank in leaving:
                    self._some(leaving, rank, self._lines[rank].send)
                elif rank not in coming and not incoming:
                    raise self._lost(f"worker {rank} closed its line")

    def _some(
        self, rest: dict[int, memoryview], rank: int, move: Callable[[memoryview], int]
    ) -> None:
        """As much as the line takes or gives at the moment."""
        try:
            while rest[rank]:
                count = move(rest[rank])
                if not count:
                    raise self._lost(f"worker {rank} closed its line")
                rest[rank] = rest[rank][count:]
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost(f"worker {rank}: {error.strerror or error}") from error
        del rest[rank]

    def _lost(self, reason: str) -> PeerLost:
        return PeerLost(
            f"worker {self._world.rank} of {self._world.size} lost another worker: {reason}",
            "the log of the worker that ended first says why",
        )


@contextlib.contextmanager
def meet(world: World) -> Iterator[Exchange]:
    """Meet the other workers, and leave at the end; with one worker nothing is opened.

    Raises TrainingError naming the workers that did not come in time.
    """
    exchange = Exchange(world, find_others(world) if world.size > 1 else {})
    try:
        yield exchange
    finally:
        exchange.close()
