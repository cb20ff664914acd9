"""The target ``local``, with real processes, sockets and kills."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from tests.conftest import processes_about

from modelyard.deployment import processes
from modelyard.deployment.targets.contract import TargetContract, ask
from modelyard.deployment.targets.local import Local
from modelyard.spec.errors import DeploymentError, DiskFull, StoreError
from modelyard.spec.records import Deployment, Service

Wait = Callable[..., Deployment]


def pids(deployment: Deployment) -> list[int]:
    return [replica.pid for replica in deployment.replicas if replica.pid]


def running(pids: Iterable[int | None]) -> list[int]:
    """Those that run; a zombie waits only for its parent to look at it."""
    found = []
    for pid in filter(None, pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def newer(service: Service, **changes: Any) -> Service:
    return msgspec.structs.replace(service, version=service.version + 1, **changes)


@pytest.mark.usefixtures("nothing_left")
class TestContract(TargetContract):
    """The published contract, on this target."""


def test_the_plan_is_the_whole_process_table(target: Local, service: Service) -> None:
    service = msgspec.structs.replace(service, bundle_folder="/bundles/toy", port=8080)
    plan = Local(cores=4).plan(service)
    assert plan["kind"] == "process-table"
    assert plan["gateway"] == {
        "host": "127.0.0.1",
        "port": 8080,
        "max_request_bytes": 32 * 1024 * 1024,
        "timeout_seconds": 10.0,
        "max_in_flight": 1024,
    }
    assert plan["replica_command"] == ["-m", "modelyard.serving"]
    assert [replica["index"] for replica in plan["replicas"]] == [0, 1]
    words = plan["replicas"][1]["arguments"]
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert given == {
        "--bundle": "/bundles/toy",
        "--host": "127.0.0.1",
        "--port": "0",
        "--threads": "2",
        "--max-batch": "64",
        "--max-request-bytes": str(32 * 1024 * 1024),
        "--timeout-seconds": "10.0",
        "--model": "toy",
        "--version": "1",
        "--digest": service.digest,
        "--protocols": "rest",
        "--replica": "1",
    }


@pytest.mark.parametrize(("cores", "replicas", "threads"), [(8, 2, 4), (2, 3, 1), (1, 1, 1)])
def test_cores_are_shared_out(service: Service, cores: int, replicas: int, threads: int) -> None:
    plan = Local(cores=cores).plan(msgspec.structs.replace(service, replicas=replicas))
    for replica in plan["replicas"]:
        words = replica["arguments"]
        assert words[words.index("--threads") + 1] == str(threads)
        assert replica["environment"]["OMP_NUM_THREADS"] == str(threads)


def test_the_supervisor_outlives_the_command(
    target: Local, service: Service, folder: Path, new_children: Callable[[], list[psutil.Process]]
) -> None:
    up = target.apply(folder, target.plan(service))
    assert up.supervisor_pid is not None
    supervisor = psutil.Process(up.supervisor_pid)
    assert os.getpid() not in [parent.pid for parent in supervisor.parents()]
    assert os.getsid(up.supervisor_pid) != os.getsid(0)
    assert not new_children(), "a child of this process would be a zombie later"
    assert sorted(pids(up)) == sorted(child.pid for child in supervisor.children())


def test_down_ends_every_process_and_keeps_the_logs(
    target: Local, service: Service, folder: Path
) -> None:
    up = target.apply(folder, target.plan(service))
    target.remove(folder)
    assert not running([up.supervisor_pid, *pids(up)])
    down = target.observe(folder)
    assert down is not None
    assert (down.state, down.supervisor_pid, pids(down)) == ("stopped", None, [])
    assert "replica-1 | " in target.logs(folder)


def test_logs_are_one_story(target: Local, service: Service, folder: Path) -> None:
    target.apply(folder, target.plan(service))
    lines = target.logs(folder).splitlines()
    assert any(line.startswith("supervisor | ") and "serves" in line for line in lines)
    assert any(line.startswith("replica-0 | ") and line.endswith(" ready") for line in lines)
    assert len(target.logs(folder, lines=2).splitlines()) == 2
    times = [line.partition(" | ")[2].split()[0] for line in lines]
    assert times == sorted(times)


def test_a_port_in_use_names_its_holder_before_anything_starts(
    target: Local, service: Service, folder: Path
) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        plan = target.plan(msgspec.structs.replace(service, port=port))
        with pytest.raises(DeploymentError) as raised:
            target.apply(folder, plan)
    assert f"port {port} is in use by" in raised.value.what
    assert f"(pid {os.getpid()})" in raised.value.what
    assert f"serve.port={port + 1}" in raised.value.mend
    assert target.observe(folder) is None
    assert processes.live_supervisor(folder) is None


def test_a_changed_port_that_is_in_use_leaves_the_service_where_it_was(
    target: Local, service: Service, folder: Path
) -> None:
    up = target.apply(folder, target.plan(service))
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        other = msgspec.structs.replace(service, port=holder.getsockname()[1])
        with pytest.raises(DeploymentError, match="is in use"):
            target.apply(folder, target.plan(other))
    assert ask(f"{up.url}/healthz") == 200


def test_the_service_moves_to_another_port(target: Local, service: Service, folder: Path) -> None:
    first = target.apply(folder, target.plan(service))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    second = target.apply(folder, target.plan(msgspec.structs.replace(service, port=port)))
    assert second.url == f"http://127.0.0.1:{port}"
    assert ask(f"{second.url}/healthz") == 200
    assert ask(f"{first.url}/healthz") == 0


def test_a_host_of_another_machine_is_refused(
    target: Local, service: Service, folder: Path
) -> None:
    plan = target.plan(msgspec.structs.replace(service, host="203.0.113.7"))
    with pytest.raises(DeploymentError) as raised:
        target.apply(folder, plan)
    assert "serve.host" in raised.value.mend


def test_a_first_version_that_fails_says_why_in_its_own_words(
    target: Local, service: Service, folder: Path
) -> None:
    (Path(service.bundle_folder) / "behaviour.json").write_text('{"fail": "weights are damaged"}')
    with pytest.raises(DeploymentError) as raised:
        target.apply(folder, target.plan(service))
    assert "ended with code 1" in raised.value.what
    assert "weights are damaged" in raised.value.what
    seen = target.observe(folder)
    assert seen is not None
    assert (seen.state, pids(seen)) == ("failed", [])
    assert processes.live_supervisor(folder) is None
    # Mended, the same command goes through.
    (Path(service.bundle_folder) / "behaviour.json").unlink()
    assert target.apply(folder, target.plan(service)).state == "ready"


def test_a_supervisor_that_ends_on_a_full_disk_is_told_as_such(
    target: Local, service: Service, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot write what it observed; what little its log still took would hide the cause."""
    monkeypatch.setattr(
        "modelyard.deployment.targets.local._start_supervisor", lambda _folder: None
    )
    with pytest.raises(DeploymentError, match="the supervisor ended"):
        target.apply(folder, target.plan(service))
    monkeypatch.setattr("modelyard.deployment.targets.local._SCARCE_BYTES", 2**60)
    with pytest.raises(DiskFull, match=r"the disk is full: .* are free on the file system at"):
        target.apply(folder, target.plan(service))


def test_a_version_that_is_too_slow_gives_way_to_the_one_before(
    target: Local, service: Service, folder: Path, tmp_path: Path
) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "behaviour.json").write_text(json.dumps({"start_seconds": 60}))
    first = target.apply(folder, target.plan(service))
    with pytest.raises(DeploymentError) as raised:
        target.apply(folder, target.plan(newer(service, bundle_folder=str(slow))), timeout=1.0)
    assert "not ready after 1 s" in raised.value.what
    assert "toy:1 keeps serving" in raised.value.what
    seen = target.observe(folder)
    assert seen is not None
    assert (seen.state, seen.service.version, pids(seen)) == ("ready", 1, pids(first))
    assert "not ready" in seen.error


def test_two_applies_at_once_end_in_one_deployment(
    target: Local, service: Service, folder: Path
) -> None:
    results: list[Deployment] = []
    threads = [
        threading.Thread(target=lambda: results.append(target.apply(folder, target.plan(service))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(one.supervisor_pid, *pids(one)) for one in results}) == 1
    assert len(results) == 3


APPLY = """
import json, pathlib, sys
from modelyard.deployment.targets.local import Local
Local().apply(pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]))
"""


@pytest.mark.parametrize("moment", ["desired.json", "supervisor.lock", "observed.json", "run"])
def test_a_killed_command_leaves_nothing_that_the_next_one_cannot_finish(
    target: Local, service: Service, folder: Path, moment: str
) -> None:
    behaviour = Path(service.bundle_folder) / "behaviour.json"
    behaviour.write_text('{"start_seconds": 0.5}')
    plan = target.plan(service)
    with subprocess.Popen([sys.executable, "-c", APPLY, str(folder), json.dumps(plan)]) as command:
        while not (folder / moment).exists():
            assert command.poll() is None
            time.sleep(0.001)
        command.kill()
    up = target.apply(folder, plan)
    assert up.state == "ready"
    assert len(running(pids(up))) == 2


def test_a_supervisor_that_comes_after_the_end_brings_nothing_up(
    target: Local, service: Service, folder: Path
) -> None:
    """Such as that of a command that was killed, on a busy machine."""
    target.apply(folder, target.plan(service))
    target.remove(folder)
    late = [sys.executable, "-P", "-m", "modelyard.deployment.supervisor", str(folder)]
    subprocess.run(late, check=True)
    deadline = time.monotonic() + 10
    while processes_about(folder):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    observed = target.observe(folder)
    assert observed is not None and observed.state == "stopped"
    assert target.apply(folder, target.plan(service)).state == "ready"


def test_a_newer_wish_ends_the_wait_for_an_older_one(
    target: Local, service: Service, folder: Path, tmp_path: Path
) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "behaviour.json").write_text('{"start_seconds": 60}')
    plan = target.plan(newer(service, bundle_folder=str(slow)))
    with subprocess.Popen([sys.executable, "-c", APPLY, str(folder), json.dumps(plan)]) as command:
        while not (folder / "run").exists():
            time.sleep(0.01)
        command.kill()
    up = target.apply(folder, target.plan(service), timeout=20.0)
    assert (up.state, up.service.version) == ("ready", 1)
    assert len(up.replicas) == 2


def test_replicas_die_with_their_supervisor_and_apply_brings_all_back(
    target: Local, service: Service, folder: Path
) -> None:
    first = target.apply(folder, target.plan(service))
    assert first.supervisor_pid is not None
    os.kill(first.supervisor_pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while running(pids(first)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    gone = target.observe(folder)
    assert gone is not None
    assert gone.state == "failed"
    assert f"pid {first.supervisor_pid}" in gone.error
    second = target.apply(folder, target.plan(service))
    assert second.state == "ready"
    assert set(pids(second)).isdisjoint(pids(first))


def test_a_replica_that_hangs_after_its_supervisor_died_is_ended_by_the_next_command(
    target: Local, service: Service, folder: Path
) -> None:
    first = target.apply(folder, target.plan(service))
    assert first.supervisor_pid is not None
    for pid in pids(first):
        os.kill(pid, signal.SIGSTOP)
    os.kill(first.supervisor_pid, signal.SIGKILL)
    while processes.live_supervisor(folder) is not None:
        time.sleep(0.02)
    target.remove(folder)
    assert not running(pids(first))


def test_a_supervisor_that_hangs_is_ended_with_its_replicas(
    target: Local, service: Service, folder: Path
) -> None:
    up = target.apply(folder, target.plan(service))
    assert up.supervisor_pid is not None
    os.kill(up.supervisor_pid, signal.SIGSTOP)
    target.remove(folder, timeout=0.5)
    assert not running([up.supervisor_pid, *pids(up)])


def test_a_stale_lock_file_with_the_number_of_another_process_misleads_nobody(
    target: Local, service: Service, folder: Path
) -> None:
    folder.mkdir()
    bystander = psutil.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        stale = processes.Identity(pid=bystander.pid, started="1")
        (folder / processes.SUPERVISOR_LOCK).write_bytes(msgspec.json.encode(stale))
        assert processes.live_supervisor(folder) is None
        target.remove(folder)
        assert bystander.is_running()
        assert target.apply(folder, target.plan(service)).state == "ready"
        target.remove(folder)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_damaged_observation_is_named(target: Local, service: Service, folder: Path) -> None:
    folder.mkdir()
    (folder / "observed.json").write_bytes(b"{")
    with pytest.raises(StoreError, match="damaged"):
        target.observe(folder)
    (folder / "observed.json").unlink()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(
    target: Local, service: Service, tmp_path: Path
) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="no permission"):
            target.apply(tmp_path / "deployment", target.plan(service))
    finally:
        tmp_path.chmod(0o700)
