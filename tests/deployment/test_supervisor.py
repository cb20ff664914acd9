"""The bars: a killed replica, a hung one and a new version, all under load, without one failed request."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psutil

from modelyard.deployment.targets.local import Local
from modelyard.spec.records import Deployment, Service

Wait = Callable[..., Deployment]


def test_a_killed_replica_under_load_costs_no_request_and_is_back_within_5_seconds(
    target: Local, service: Service, folder: Path, load: Any, ask_double: Any, wait_until: Wait
) -> None:
    up = target.apply(folder, target.plan(service))
    with load(up.url, ask_double) as running:
        running.wait_for_more(200)
        for replica in up.replicas:
            assert replica.pid is not None
            os.kill(replica.pid, signal.SIGKILL)
            killed = time.monotonic()
            back = wait_until(
                folder,
                lambda seen, before=replica: (
                    seen.state == "ready" and seen.replicas[before.index].pid != before.pid
                ),
            )
            assert time.monotonic() - killed < 5
            assert back.replicas[replica.index].restarts == 1
            running.wait_for_more(200)
    assert not running.errors
    assert {answer["replica"] for answer in running.answers} == {0, 1}


def test_a_new_version_under_load_costs_no_request(
    target: Local, service: Service, folder: Path, load: Any, ask_double: Any
) -> None:
    up = target.apply(folder, target.plan(service))
    with load(up.url, ask_double) as running:
        running.wait_for_more(200)
        second = msgspec.structs.replace(service, version=2)
        swapped = target.apply(folder, target.plan(second))
        after = len(running.answers) + 16  # one answer of each client may still be on its way
        running.wait_for_more(300)
    assert not running.errors
    assert swapped.url == up.url
    assert [replica.version for replica in swapped.replicas] == [2, 2]
    versions = [answer["version"] for answer in running.answers]
    assert versions[0] == 1
    assert set(versions[after:]) == {2}
    old = [replica.pid for replica in up.replicas if replica.pid]
    assert not [pid for pid in old if psutil.pid_exists(pid)]


def test_a_replica_that_hangs_is_killed_and_replaced_and_its_requests_are_answered(
    target: Local, service: Service, folder: Path, load: Any, ask_double: Any, wait_until: Wait
) -> None:
    plan = target.plan(service)
    plan["supervisor"] |= {"probe_seconds": 0.2, "probe_timeout_seconds": 0.5}
    up = target.apply(folder, plan)
    hung = up.replicas[0]
    assert hung.pid is not None
    with load(up.url, ask_double) as running:
        running.wait_for_more(100)
        os.kill(hung.pid, signal.SIGSTOP)
        back = wait_until(
            folder, lambda seen: seen.state == "ready" and seen.replicas[0].pid != hung.pid
        )
        running.wait_for_more(100)
    assert not running.errors
    assert not psutil.pid_exists(hung.pid)
    assert back.replicas[1].pid == up.replicas[1].pid
    assert "answered none of 3 probes" in target.logs(folder, lines=1000)


def test_a_request_in_flight_is_finished_before_the_old_version_ends(
    target: Local, service: Service, folder: Path, load: Any
) -> None:
    def slow(client: Any, number: int) -> int:
        return int(client.ask("GET", "/slow?seconds=1.5")[0])

    up = target.apply(folder, target.plan(service))
    with load(up.url, slow, clients=2) as running:
        deadline = time.monotonic() + 10
        while target.logs(folder, lines=1000).count("slow request") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        target.apply(folder, target.plan(msgspec.structs.replace(service, version=2)))
    assert not running.errors
    assert set(running.answers) == {200}


def test_down_finishes_what_is_in_flight(
    target: Local, service: Service, folder: Path, client: Any
) -> None:
    up = target.apply(folder, target.plan(service))
    with ThreadPoolExecutor() as pool:
        slow = [pool.submit(client(up.url).ask, "GET", "/slow?seconds=1.5") for _ in range(2)]
        deadline = time.monotonic() + 10
        while target.logs(folder, lines=1000).count("slow request") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        target.remove(folder)
        assert [one.result(timeout=1)[0] for one in slow] == [200, 200]


def test_a_replica_that_crashes_again_and_again_is_said_to_be_failed(
    target: Local, service: Service, folder: Path, wait_until: Wait
) -> None:
    up = target.apply(folder, target.plan(service))
    (Path(service.bundle_folder) / "behaviour.json").write_text('{"fail": "no memory"}')
    assert up.replicas[0].pid is not None
    os.kill(up.replicas[0].pid, signal.SIGKILL)
    seen = wait_until(folder, lambda seen: seen.replicas[0].restarts >= 3)
    assert seen.state == "degraded"
    wait_until(folder, lambda seen: "no memory" in seen.replicas[0].error)
    (Path(service.bundle_folder) / "behaviour.json").unlink()
    wait_until(folder, lambda seen: seen.state == "ready")


def test_observed_json_is_whole_whenever_it_is_read(
    target: Local, service: Service, folder: Path
) -> None:
    up = target.apply(folder, target.plan(service))
    assert up.replicas[0].pid is not None
    os.kill(up.replicas[0].pid, signal.SIGKILL)
    end = time.monotonic() + 0.7
    while time.monotonic() < end:
        seen = Deployment.from_json((folder / "observed.json").read_bytes())
        assert seen.name == "toy"
