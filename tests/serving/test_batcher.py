import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.serving.batcher import Batcher, CallCost, DeadlineExceeded, Overloaded, Tensors
from modelyard.spec.errors import ServingError


class Seen:
    """Observer that remembers."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.sheds: list[str] = []

    def batch(self, rows: int, inference_seconds: float, queue_seconds: list[float]) -> None:
        assert inference_seconds >= 0
        assert min(queue_seconds) >= 0
        self.batches.append(rows)

    def shed(self, reason: str) -> None:
        self.sheds.append(reason)


class Gate:
    """A model (it doubles) that waits at a gate, so that tests decide what is there at once."""

    def __init__(self, *, opened: bool = False) -> None:
        self.gate = threading.Event()
        self.busy = threading.Event()
        if opened:
            self.gate.set()

    def __call__(self, inputs: Tensors) -> Tensors:
        self.busy.set()
        assert self.gate.wait(10)
        if (inputs["x"] == 13).any():
            raise ValueError("unlucky")
        return {"y": inputs["x"] * 2}

    async def entered(self) -> None:
        """The first call is inside the model."""
        assert await asyncio.to_thread(self.busy.wait, 10)


def rows(*values: float) -> Tensors:
    return {"x": np.array(values, np.float32).reshape(-1, 1)}


def soon() -> float:
    return time.monotonic() + 10


def run(
    test: Callable[[Batcher, Gate, Seen], Coroutine[Any, Any, None]],
    *,
    opened: bool = False,
    **options: int,
) -> None:
    gate, seen = Gate(opened=opened), Seen()
    batcher = Batcher(gate, seen, **({"max_batch": 8} | options))
    try:
        asyncio.run(test(batcher, gate, seen))
    finally:
        gate.gate.set()
        batcher.close()


def test_a_lone_request_waits_for_nobody() -> None:
    async def test(batcher: Batcher, _: Gate, seen: Seen) -> None:
        answer = await batcher.infer(rows(1, 2), 2, soon())
        assert answer["y"].tolist() == [[2], [4]]
        assert seen.batches == [2]

    run(test, opened=True)


def test_what_waits_is_run_together_and_each_gets_its_own() -> None:
    async def test(batcher: Batcher, gate: Gate, seen: Seen) -> None:
        first = asyncio.create_task(batcher.infer(rows(0), 1, soon()))
        await gate.entered()
        others = [asyncio.create_task(batcher.infer(rows(i, -i), 2, soon())) for i in range(1, 6)]
        await asyncio.sleep(0)
        assert batcher.depth == 10
        gate.gate.set()
        answers = await asyncio.gather(first, *others)
        assert [a["y"].ravel().tolist() for a in answers[1:]] == [
            [2 * i, -2 * i] for i in range(1, 6)
        ]
        assert seen.batches == [1, 8, 2]  # in order, never more than 8

    run(test)


def test_a_large_request_is_split_and_rejoined() -> None:
    async def test(batcher: Batcher, _: Gate, seen: Seen) -> None:
        answer = await batcher.infer(rows(*range(30, 51)), 21, soon())
        assert answer["y"].ravel().tolist() == [2 * i for i in range(30, 51)]
        assert seen.batches == [8, 8, 5]

    run(test, opened=True)


def test_one_bad_request_harms_nobody_else() -> None:
    async def test(batcher: Batcher, gate: Gate, seen: Seen) -> None:
        first = asyncio.create_task(batcher.infer(rows(0), 1, soon()))
        await gate.entered()
        others = [asyncio.create_task(batcher.infer(rows(i), 1, soon())) for i in (12, 13, 14)]
        await asyncio.sleep(0)
        gate.gate.set()
        await first
        good, bad, fine = await asyncio.gather(*others, return_exceptions=True)
        assert isinstance(bad, ValueError)
        assert isinstance(good, dict)
        assert isinstance(fine, dict)
        assert (good["y"].item(), fine["y"].item()) == (24, 28)

    run(test)


def test_a_request_that_nobody_waits_for_is_not_run() -> None:
    async def test(batcher: Batcher, gate: Gate, seen: Seen) -> None:
        first = asyncio.create_task(batcher.infer(rows(0), 1, soon()))
        await gate.entered()
        gone = asyncio.create_task(batcher.infer(rows(1, 2, 3), 3, soon()))
        stays = asyncio.create_task(batcher.infer(rows(4), 1, soon()))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        gate.gate.set()
        await asyncio.gather(first, stays)
        assert seen.batches == [1, 1]
        assert gone.cancelled()

    run(test)


def test_an_answer_that_is_late_is_a_deadline_error() -> None:
    async def test(batcher: Batcher, gate: Gate, seen: Seen) -> None:
        with pytest.raises(DeadlineExceeded, match="no answer within"):
            await batcher.infer(rows(1), 1, time.monotonic() + 0.05)
        waiting = asyncio.create_task(batcher.infer(rows(2), 1, time.monotonic() + 0.05))
        with pytest.raises(DeadlineExceeded):
            await waiting
        gate.gate.set()
        assert (await batcher.infer(rows(3), 1, soon()))["y"].item() == 6
        assert seen.batches == [1, 1]  # the one that waited in vain was never run

    run(test)


def test_what_cannot_start_in_time_is_refused_at_once() -> None:
    async def test(batcher: Batcher, gate: Gate, seen: Seen) -> None:
        for _ in range(50):
            batcher._cost.observe(8, 1.0)  # a full batch takes a second
        running = asyncio.create_task(batcher.infer(rows(0), 1, soon()))
        await gate.entered()
        queue = [
            asyncio.create_task(batcher.infer(rows(*range(20, 28)), 8, soon())) for _ in range(3)
        ]
        await asyncio.sleep(0)
        assert batcher.estimated_wait() >= 3.0
        started = time.monotonic()
        with pytest.raises(Overloaded) as refused:
            await batcher.infer(rows(1), 1, started + 2.0)
        assert time.monotonic() - started < 1.0
        assert refused.value.retry_after >= 3.0
        assert seen.sheds == ["deadline"]
        gate.gate.set()
        await asyncio.gather(running, *queue)

    run(test)


def test_the_queue_is_bounded_by_rows_and_by_bytes() -> None:
    async def fill(batcher: Batcher, gate: Gate) -> list["asyncio.Task[Tensors]"]:
        tasks = [asyncio.create_task(batcher.infer(rows(0), 1, soon()))]
        await gate.entered()
        tasks.append(asyncio.create_task(batcher.infer(rows(*range(20, 30)), 10, soon())))
        await asyncio.sleep(0)
        return tasks

    async def test(batcher: Batcher, gate: Gate, seen: Seen) -> None:
        tasks = await fill(batcher, gate)
        with pytest.raises(Overloaded):
            await batcher.infer(rows(1, 2, 3), 3, soon())
        gate.gate.set()
        await asyncio.gather(*tasks)
        assert (await batcher.infer(rows(5), 1, soon()))["y"].item() == 10  # it goes on
        assert len(seen.sheds) == 1

    run(test, max_rows=12)
    run(test, max_bytes=48)


def test_an_idle_batcher_takes_anything_however_slow_it_was() -> None:
    """Or it could never learn that calls have become cheaper."""

    async def test(batcher: Batcher, _: Gate, seen: Seen) -> None:
        batcher._cost.observe(1, 1000.0)
        await batcher.infer(rows(*range(20, 120)), 100, soon())
        assert seen.sheds == []

    run(test, opened=True, max_rows=10)


def test_an_output_without_a_batch_axis_is_an_error() -> None:
    async def test() -> None:
        batcher = Batcher(lambda inputs: {"y": inputs["x"].sum(axis=0)}, Seen(), max_batch=8)
        with pytest.raises(ServingError, match="axis 0 is not the batch"):
            await batcher.infer(rows(1, 2), 2, soon())
        batcher.close()

    asyncio.run(test())


def test_closing_answers_what_waits_and_refuses_the_rest() -> None:
    async def test(batcher: Batcher, gate: Gate, seen: Seen) -> None:
        first = asyncio.create_task(batcher.infer(rows(0), 1, soon()))
        await gate.entered()
        waits = asyncio.create_task(batcher.infer(rows(1), 1, soon()))
        await asyncio.sleep(0)
        gate.gate.set()
        await asyncio.to_thread(batcher.close)
        with pytest.raises(Overloaded, match="shutting down"):
            await batcher.infer(rows(2), 1, soon())
        answers = await asyncio.gather(first, waits)
        assert answers[1]["y"].item() == 2

    run(test)


def test_a_call_that_does_not_end_is_a_stall() -> None:
    async def test(batcher: Batcher, gate: Gate, seen: Seen) -> None:
        assert not batcher.stalled(0.0)
        task = asyncio.create_task(batcher.infer(rows(0), 1, soon()))
        await gate.entered()
        await asyncio.sleep(0.02)
        assert batcher.stalled(0.01)
        assert not batcher.stalled(60)
        gate.gate.set()
        await task
        until = soon()
        while batcher.stalled(0.0) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert not batcher.stalled(0.0)

    run(test)


@given(
    fixed=st.floats(1e-5, 1.0),
    slope=st.floats(1e-6, 0.1),
    sizes=st.lists(st.integers(1, 64), min_size=5, max_size=40),
)
def test_the_cost_of_a_call_is_learned(fixed: float, slope: float, sizes: list[int]) -> None:
    cost = CallCost()
    for size in sizes:
        cost.observe(size, fixed + slope * size)
    if len(set(sizes)) > 1 and max(sizes) > 1.2 * min(sizes):
        for size in (min(sizes), max(sizes)):
            assert cost.seconds(size) == pytest.approx(fixed + slope * size, rel=0.05)
    # Never less than what the same size took, never negative, never shrinking with size.
    estimates = [cost.seconds(n) for n in range(1, 65)]
    assert min(estimates) >= 0
    assert estimates == sorted(estimates)
