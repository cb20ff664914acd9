"""Batches made ahead: the same batches in the same order, whoever makes them, and a clean end."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.data.cursor import Cursor
from modelyard.data.dataset import Split
from modelyard.data.feed import BatchMaker, Choice, Feed, Made
from modelyard.spec.signature import ImageInput, NaturalInput, TensorInput
from modelyard.spec.training import AugmentSection

IMAGE = ImageInput(height=6, width=5, color="rgb", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
VECTOR = TensorInput(shape=(4,))
PICTURES = AugmentSection(flip=0.5, crop=2, color=0.3)
MIXED = AugmentSection(flip=0.5, crop=2, mixup=0.4, cutmix=1.0)
NUMBERS = AugmentSection(noise=0.5, mask=0.2, mixup=0.4)


def make_split(samples: int, spec: NaturalInput = IMAGE) -> Split:
    rng = np.random.default_rng(samples)
    inputs: Any = rng.normal(size=(samples, *spec.shape)).astype(np.float32)
    if isinstance(spec, ImageInput):
        inputs = rng.integers(0, 256, inputs.shape, dtype=np.uint8)
    return Split(spec=spec, inputs=inputs, targets=np.arange(samples), positions=np.arange(samples))


def global_batch(split: Split, cursor: Cursor, step: int, size: int, asked: AugmentSection) -> Made:
    """All workers' shares, put together again."""
    shares = [
        BatchMaker(split, cursor, rank=rank, size=size, augment=asked).make(step)
        for rank in range(size)
    ]

    def joined(name: str) -> Any:
        parts = [getattr(share, name) for share in shares]
        return None if parts[0] is None else np.concatenate(parts)

    return Made(*(joined(n) for n in ("inputs", "targets", "other_targets", "weight")))


def assert_same(left: Made, right: Made) -> None:
    for name in ("inputs", "targets", "other_targets", "weight"):
        one, two = getattr(left, name), getattr(right, name)
        assert (one is None) == (two is None), name
        if one is not None:
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(one, two, err_msg=name)


def digest(made: Made) -> str:
    content = hashlib.sha256()
    for name in ("inputs", "targets", "other_targets", "weight"):
        array = getattr(made, name)
        content.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return content.hexdigest()


CASES = [(IMAGE, AugmentSection()), (IMAGE, PICTURES), (IMAGE, MIXED), (VECTOR, NUMBERS)]


@pytest.mark.parametrize(("spec", "asked"), CASES, ids=["plain", "pictures", "mixed", "numbers"])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_the_global_batch_does_not_depend_on_the_number_of_workers(
    spec: NaturalInput, asked: AugmentSection, data: st.DataObject
) -> None:
    samples = data.draw(st.integers(1, 40), "samples")
    batch = data.draw(st.integers(8, 24), "batch")
    step = data.draw(st.integers(0, 10**6), "step")
    split, cursor = make_split(samples, spec), Cursor(samples, batch, data.draw(st.integers(0, 99)))
    alone = BatchMaker(split, cursor, augment=asked).make(step)
    assert len(alone.targets) == batch
    np.testing.assert_array_equal(alone.targets, cursor.indices(step))
    for size in range(2, 9):
        assert_same(global_batch(split, cursor, step, size, asked), alone)


@given(
    start=st.integers(0, 200),
    count=st.integers(1, 12),
    ahead=st.integers(0, 4),
    asked=st.sampled_from([AugmentSection(), PICTURES, MIXED]),
)
@settings(max_examples=40, deadline=None)
def test_a_resumed_feed_goes_on_as_if_nothing_had_been(
    start: int, count: int, ahead: int, asked: AugmentSection
) -> None:
    """In line or ahead, from any step on: the batches of those steps, in order."""
    split, cursor = make_split(20), Cursor(20, 8, 3)
    maker = BatchMaker(split, cursor, rank=1, size=2, augment=asked)
    expected = [maker.make(step) for step in range(start, start + count)]
    with Feed(maker, start=start, ahead=ahead) as feed:
        for step, made in enumerate(expected, start):
            assert_same(feed.take(step), made)
        jump = feed.take(start)  # and back again
    assert_same(jump, expected[0])


def test_another_process_makes_the_same() -> None:
    code = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_feed import *
split, cursor = make_split(30), Cursor(30, 8, 5)
print(json.dumps([digest(BatchMaker(split, cursor, augment=a).make(7)) for a in (PICTURES, MIXED)]))
"""
    folder = __file__.rpartition("/")[0]
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    split, cursor = make_split(30), Cursor(30, 8, 5)
    mine = [digest(BatchMaker(split, cursor, augment=a).make(7)) for a in (PICTURES, MIXED)]
    assert json.loads(done.stdout) == mine


def test_a_sample_is_varied_in_another_way_in_each_epoch() -> None:
    split, cursor = make_split(8), Cursor(8, 8, 0)
    maker = BatchMaker(split, cursor, augment=PICTURES)
    seen = set()
    for epoch in range(6):
        made = maker.make(epoch)
        seen.add(made.inputs[np.argsort(made.targets)].tobytes())
    assert len(seen) == 6


def test_partners_come_from_the_whole_batch_and_bring_their_labels() -> None:
    split, cursor = make_split(64), Cursor(64, 32, 0)
    asked = AugmentSection(mixup=1.0)
    own = set(cursor.share(0, 0, 2).tolist())
    made = BatchMaker(split, cursor, rank=0, size=2, augment=asked).make(0)
    assert made.other_targets is not None and made.weight is not None
    assert not set(made.other_targets.tolist()) <= own
    share = made.weight.reshape(-1, 1, 1, 1).astype(np.float64)
    expected = split.inputs[made.targets] * share + split.inputs[made.other_targets] * (1 - share)
    assert np.abs(made.inputs - expected).max() <= 0.5


class Slow(BatchMaker):
    """Counts what it makes, takes its time, and fails where it is told to."""

    def __init__(self, seconds: float = 0.0, fails_at: int | None = None) -> None:
        super().__init__(make_split(8), Cursor(8, 4, 0))
        self.seconds, self.fails_at = seconds, fails_at
        self.made: list[int] = []

    def make(self, step: int) -> Made:
        time.sleep(self.seconds)
        if step == self.fails_at:
            raise OSError(5, "the disk is gone", "inputs.npy")
        self.made.append(step)
        return super().make(step)


def feeding() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "feed"]


def test_the_thread_waits_for_the_step() -> None:
    maker = Slow()
    with Feed(maker, start=10, ahead=2) as feed:
        for _ in range(100):
            if len(maker.made) == 2:
                break
            time.sleep(0.01)
        time.sleep(0.05)
        assert maker.made == [10, 11]
        feed.take(10)
        for _ in range(100):
            if len(maker.made) == 3:
                break
            time.sleep(0.01)
        time.sleep(0.05)
        assert maker.made == [10, 11, 12]
    assert feeding() == []


def test_the_thread_works_while_the_step_does() -> None:
    """Ten steps of 20 ms that each need 15 ms of making: waiting is for the first one only."""
    with Feed(Slow(0.015), ahead=2) as ahead:
        for step in range(10):
            ahead.take(step)
            time.sleep(0.02)
    with Feed(Slow(0.015), ahead=0) as in_line:
        for step in range(10):
            in_line.take(step)
    assert in_line.waited > 0.15 and ahead.waited < in_line.waited / 2


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_is_raised_where_the_batch_is_taken(ahead: int) -> None:
    with Feed(Slow(fails_at=3), ahead=ahead) as feed:
        for step in range(3):
            feed.take(step)
        with pytest.raises(OSError, match="the disk is gone") as caught:
            feed.take(3)
        assert caught.value.filename == "inputs.npy"
        if ahead:
            with pytest.raises(OSError, match="the disk is gone"):
                feed.take(4)
    assert feeding() == []


def test_it_ends_the_thread_however_the_training_ends() -> None:
    with pytest.raises(RuntimeError, match="the step failed"), Feed(Slow(0.01), ahead=3) as feed:
        feed.take(0)
        raise RuntimeError("the step failed")
    assert feeding() == []


def choose(in_line: tuple[float, float], ahead: tuple[float, float]) -> tuple[bool, int]:
    """(step, making) seconds in line and ahead -> what is chosen, after how many steps."""
    choice, clock, works_ahead = Choice(), 0.0, False
    for count in range(1, 200):
        step, wait = ahead if works_ahead else in_line
        works_ahead = choice.after(clock, wait)
        clock += step + wait
        if count % 7 == 0:
            clock += 1.0  # an evaluation
        if choice.settled:
            return works_ahead, count
    raise AssertionError("it never settles")


def test_it_chooses_by_what_a_step_takes() -> None:
    assert choose((0.020, 0.0002), (0.020, 0.0)) == (False, 21)  # cheap: not even tried
    assert choose((0.020, 0.010), (0.021, 0.0)) == (True, 42)  # pays
    assert choose((0.020, 0.010), (0.030, 0.0)) == (False, 42)  # only takes turns with the step


def test_an_automatic_feed_settles_and_gives_the_same_batches() -> None:
    slow, plain = Slow(0.005), Slow()
    with Feed(slow) as feed:
        for step in range(60):
            assert_same(feed.take(step), plain.make(step))
            time.sleep(0.005)
        assert feed.ahead
    assert feeding() == []
