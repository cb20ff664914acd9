"""What workers use, measured and added up."""

import time

import numpy as np
import pytest

from modelyard.training.gauge import Gauge, Usage, resident_bytes, usage


def test_a_busy_process_is_seen_and_a_waiting_one_too() -> None:
    gauge = Gauge(lambda: (None, None))
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    busy = usage(gauge.read())
    assert busy.cpu is not None  # of a crowded machine it may have had only a part
    time.sleep(0.3)
    idle = usage(gauge.read())
    assert idle.cpu is not None and idle.cpu < busy.cpu / 2
    assert idle.device_memory is None and idle.device_use is None and idle.data_wait is None


def test_rows_of_workers_add_up() -> None:
    def worker(waited: float) -> Gauge:
        return Gauge(lambda: (1000, 0.5), lambda: waited)

    rows = [np.array(worker(0.0).read()) for _ in range(2)]
    found = usage(list(rows[0] + rows[1]))
    assert found.device_memory == 2000 and found.device_use == 0.5
    assert found.data_wait == pytest.approx(0.0)
    assert found.memory is not None and found.memory > 20e6
    assert usage([]) == Usage()


def test_waiting_is_a_share_of_the_time() -> None:
    waited = 0.0
    gauge = Gauge(lambda: (None, None), lambda: waited)
    time.sleep(0.2)
    waited = 0.1
    found = usage(gauge.read())
    assert found.data_wait is not None and 0.1 < found.data_wait <= 0.5


def test_memory_is_that_of_this_process() -> None:
    before = resident_bytes()
    block = np.ones(50_000_000, np.uint8)
    assert resident_bytes() - before > 40e6
    del block
