"""Dynamic batching without a timer: a free worker takes everything that waits and runs it in one call.

A request is admitted only if it can start before its deadline, judged by what calls cost so far;
otherwise it is refused at once, because an answer that comes too late costs as much as a useful one.
Under light load a request never waits for company; under heavy load batches fill by themselves.
"""

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from modelyard.spec.errors import ServingError

Tensors = dict[str, NDArray[Any]]
"""Named arrays with a common batch axis 0."""


class Overloaded(ServingError):
    """The request cannot be answered in time; ``retry_after`` seconds may be enough to wait."""

    def __init__(self, what: str, *, reason: str, retry_after: float) -> None:
        super().__init__(what, "try again later, or add replicas")
        self.reason = reason
        self.retry_after = retry_after


class DeadlineExceeded(ServingError):
    """The answer did not come before the request's deadline."""


class Observer(Protocol):
    """What the batcher tells about its work; called on the inference thread."""

    def batch(self, rows: int, inference_seconds: float, queue_seconds: list[float]) -> None: ...

    def shed(self, reason: str) -> None: ...


@dataclass(eq=False, slots=True)
class _Ticket:
    """Rows that wait; ``future`` belongs to the event loop, cancelled when nobody waits any more."""

    inputs: Tensors
    rows: int
    size: int
    deadline: float
    future: "asyncio.Future[Tensors]"
    since: float = field(default_factory=time.monotonic)


class CallCost:
    """What a call of n rows costs, ``a + b n`` seconds, fitted to recent calls with fading memory."""

    def __init__(self, fade: float = 0.05) -> None:
        self._fade = fade
        self._weight = 0.0
        self._sums = np.zeros(4)

    def observe(self, rows: int, seconds: float) -> None:
        self._weight += self._fade * (1.0 - self._weight)
        self._sums += self._fade * (
            np.array([rows, seconds, rows * rows, rows * seconds]) - self._sums
        )

    def seconds(self, rows: int) -> float:
        """Expected seconds of a call; 0 before anything was measured."""
        if not self._weight:
            return 0.0
        n, t, nn, nt = (self._sums / self._weight).tolist()
        spread = nn - n * n
        if (
            spread < 1e-6 * nn
        ):  # all calls had the same size: assume that larger ones cost in proportion
            return float(t * max(1.0, rows / n))
        slope = max(0.0, (nt - n * t) / spread)
        return float(max(0.0, t - slope * n) + slope * rows)


class Batcher:
    """One inference thread and the bounded queue before it; ``infer`` is called on an event loop."""

    def __init__(
        self,
        run: Callable[[Tensors], Tensors],
        observer: Observer,
        *,
        max_batch: int,
        max_rows: int = 0,
        max_bytes: int = 512 * 1024 * 1024,
    ) -> None:
        """``max_rows`` and ``max_bytes`` bound what may wait, whatever the deadlines (0 rows: 64 full batches)."""
        self._run = run
        self._observer = observer
        self.max_batch = max_batch
        self._max_rows = max_rows or max(4096, 64 * max_batch)
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._waiting: deque[_Ticket] = deque()
        self._rows = 0
        self._bytes = 0
        self._running: tuple[int, float] | None = None
        self._cost = CallCost()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Rows that wait."""
        return self._rows

    def stalled(self, seconds: float) -> bool:
        """Whether the inference thread died, or has been in one call for longer than ``seconds``."""
        running = self._running
        stuck = running is not None and time.monotonic() - running[1] > seconds
        return stuck or (not self._closed and not self._thread.is_alive())

    def estimated_wait(self) -> float:
        """Seconds until a request that came now would start."""
        running, rows = self._running, self._rows
        if running is None and not rows:
            return 0.0
        current = 0.0
        if running is not None:
            current = max(0.0, self._cost.seconds(running[0]) - (time.monotonic() - running[1]))
        full, rest = divmod(rows, self.max_batch)
        waiting = full * self._cost.seconds(self.max_batch)
        return current + waiting + (self._cost.seconds(rest) if rest else 0.0)

    async def infer(self, inputs: Tensors, rows: int, deadline: float) -> Tensors:
        """Answer ``rows`` rows before ``deadline`` (``time.monotonic``); cancelling gives up the place.

        Raises Overloaded, DeadlineExceeded, or whatever the model raised for these rows.
        """
        now = time.monotonic()
        size = sum(array.nbytes for array in inputs.values())
        self._admit(rows, size, now, deadline)
        tickets = self._enqueue(inputs, rows, deadline)
        try:
            async with asyncio.timeout(deadline - now):
                parts = [await ticket.future for ticket in tickets]
        except TimeoutError:
            raise DeadlineExceeded(
                f"no answer within {deadline - now:.3g} s",
                "allow more time, send fewer rows, or add replicas",
            ) from None
        finally:
            for ticket in tickets:
                if not ticket.future.cancel() and not ticket.future.cancelled():
                    ticket.future.exception()  # seen: asyncio need not warn about the other parts
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def close(self, seconds: float = 5.0) -> None:
        """Refuse new requests, answer those that wait, end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def _admit(self, rows: int, size: int, now: float, deadline: float) -> None:
        if self._closed:
            raise Overloaded("the service is shutting down", reason="closing", retry_after=1.0)
        wait = self.estimated_wait()
        reason = ""
        if self._rows and self._rows + rows > self._max_rows:
            reason = "rows"
        elif self._bytes and self._bytes + size > self._max_bytes:
            reason = "bytes"
        elif now + wait > deadline:
            reason = "deadline"
        if reason:
            self._observer.shed(reason)
            raise Overloaded(
                f"the service is overloaded: {self._rows} rows wait, about {wait:.2g} s of work",
                reason=reason,
                retry_after=wait,
            )

    def _enqueue(self, inputs: Tensors, rows: int, deadline: float) -> list[_Ticket]:
        """One ticket, or several of at most ``max_batch`` rows."""
        loop = asyncio.get_running_loop()
        tickets = []
        for start in range(0, rows, self.max_batch):
            count = min(self.max_batch, rows - start)
            part = (
                inputs
                if count == rows
                else {name: array[start : start + count] for name, array in inputs.items()}
            )
            size = sum(array.nbytes for array in part.values())
            tickets.append(_Ticket(part, count, size, deadline, loop.create_future()))
        with self._changed:
            self._waiting.extend(tickets)
            self._rows += rows
            self._bytes += sum(ticket.size for ticket in tickets)
            self._changed.notify()
        return tickets

    # --- on the inference thread ------------------------------------------------------------

    def _work(self) -> None:
        while batch := self._take():
            self._answer(batch)
            self._running = None

    def _take(self) -> list[_Ticket]:
        """The oldest rows that fit one batch, without those that nobody waits for; empty at the end."""
        with self._changed:
            while True:
                batch = self._next_batch()
                if batch or (self._closed and not self._waiting):
                    return batch
                self._changed.wait()

    def _next_batch(self) -> list[_Ticket]:
        now = time.monotonic()
        batch: list[_Ticket] = []
        rows = 0
        while self._waiting and rows + self._waiting[0].rows <= self.max_batch:
            ticket = self._waiting.popleft()
            self._rows -= ticket.rows
            self._bytes -= ticket.size
            if ticket.future.cancelled() or ticket.deadline < now:
                continue
            batch.append(ticket)
            rows += ticket.rows
        if batch:
            self._running = (rows, now)
        return batch

    def _answer(self, batch: list[_Ticket]) -> None:
        """Run the batch; where it fails, each ticket alone, so that one bad request harms nobody else."""
        try:
            results: list[Tensors | Exception] = list(self._call(batch))
        except Exception as error:  # noqa: BLE001 - whatever the model raises belongs to the requests
            if len(batch) == 1:
                results = [error]
            else:
                for ticket in batch:
                    self._answer([ticket])
                return
        self._deliver(batch, results)

    def _call(self, batch: list[_Ticket]) -> Iterable[Tensors]:
        started = time.monotonic()
        rows = sum(ticket.rows for ticket in batch)
        self._running = (rows, started)
        if len(batch) == 1:
            inputs = batch[0].inputs
        else:
            names = batch[0].inputs
            inputs = {name: np.concatenate([t.inputs[name] for t in batch]) for name in names}
        outputs = self._run(inputs)
        for name, array in outputs.items():
            if array.shape[:1] != (rows,):
                raise ServingError(
                    f"output {name!r} has shape {array.shape} for {rows} rows: axis 0 is not the batch"
                )
        seconds = time.monotonic() - started
        self._cost.observe(rows, seconds)
        self._observer.batch(rows, seconds, [started - ticket.since for ticket in batch])
        return _split(outputs, [ticket.rows for ticket in batch])

    def _deliver(self, batch: list[_Ticket], results: list[Tensors | Exception]) -> None:
        """Hand all results of a batch to their event loop in one hop."""
        loops = {ticket.future.get_loop() for ticket in batch}
        for loop in loops:
            pairs = [
                (ticket.future, result)
                for ticket, result in zip(batch, results, strict=True)
                if ticket.future.get_loop() is loop
            ]
            with contextlib.suppress(RuntimeError):  # that loop was closed: nobody waits there
                loop.call_soon_threadsafe(_resolve, pairs)


def _split(outputs: Tensors, sizes: list[int]) -> list[Tensors]:
    if len(sizes) == 1:
        return [outputs]
    parts, start = [], 0
    for size in sizes:
        parts.append({name: array[start : start + size] for name, array in outputs.items()})
        start += size
    return parts


def _resolve(pairs: "list[tuple[asyncio.Future[Tensors], Tensors | Exception]]") -> None:
    for future, result in pairs:
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def retry_after_seconds(error: Overloaded) -> int:
    """Whole seconds for a ``Retry-After`` header, at least 1."""
    return max(1, math.ceil(error.retry_after))
