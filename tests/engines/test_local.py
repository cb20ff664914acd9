"""The local engine keeps the contract, and what is special about processes."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest

from modelyard.engines import local
from modelyard.engines.contract import EngineContract
from modelyard.engines.local import Local
from modelyard.engines.processes import condition, identity
from modelyard.spec.errors import DiskFull, NotFoundError, StoreError
from modelyard.spec.work import Job, Resources

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux only")


class TestContract(EngineContract):
    engine = "local"


class TestContractOfForkedWorkers(EngineContract):
    engine = "local"
    preload = ("json", "no_such_module")

    def _arguments(self, folder: Path, program: str) -> tuple[str, ...]:
        file = folder.with_name(f"{folder.name}-program.py")
        file.write_text(program)
        return (str(file),)


def job(folder: Path, program: str, size: int = 1, attempt: int = 0) -> Job:
    return Job(
        name="j", arguments=("-c", program), size=size, folder=str(folder), attempt=attempt,
        resources=Resources(threads=3),
    )  # fmt: skip


def finish(engine: Local, handle: str) -> str:
    deadline = time.monotonic() + 30
    while (state := engine.poll(handle).state) == "running" and time.monotonic() < deadline:
        time.sleep(0.02)
    return state


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.02)
    return path.read_text()


def until_dead(pid: int) -> None:
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"{pid} still runs"
        time.sleep(0.02)


def test_the_plan_is_a_process_table(tmp_path: Path) -> None:
    """The golden form: what `--dry-run` prints."""
    folder = tmp_path / "a run"
    plan = Local().plan(job(folder, "pass", attempt=1))
    assert plan == {
        "kind": "process-table",
        "name": "j",
        "attempt": 1,
        "table": f"{folder}/processes-1.json",
        "processes": [
            {
                "rank": 0,
                "arguments": [sys.executable, "-c", "pass"],
                "environment": {
                    "MALLOC_MMAP_THRESHOLD_": "33554432",
                    "MALLOC_TRIM_THRESHOLD_": "1073741824",
                    "MALLOC_TOP_PAD_": "67108864",
                    "GOMP_SPINCOUNT": "3000",
                    "RANK": "0",
                    "LOCAL_RANK": "0",
                    "WORLD_SIZE": "1",
                    "LOCAL_WORLD_SIZE": "1",
                    "MODELYARD_ATTEMPT": "1",
                    "MODELYARD_RENDEZVOUS": f"{tmp_path.as_uri()}/a%20run/rendezvous-1",
                    "OMP_NUM_THREADS": "3",
                    "TF_NUM_INTRAOP_THREADS": "3",
                    "TF_NUM_INTEROP_THREADS": "3",
                    "PYTHONUNBUFFERED": "1",
                },
                "log": f"{folder}/logs/rank-0.log",
            }
        ],
    }


def test_logs_of_all_attempts_follow_each_other(tmp_path: Path) -> None:
    engine = Local()
    for attempt in (0, 1):
        program = f"import sys; print('try', {attempt}, file=sys.stderr)"
        handle = engine.submit(engine.plan(job(tmp_path, program, attempt=attempt)))
        assert finish(engine, handle) == "succeeded"
    lines = engine.logs(handle, 0).splitlines()
    assert [line.startswith("--- attempt") for line in lines] == [True, False, True, False]
    assert [lines[1], lines[3]] == ["try 0", "try 1"]


def test_a_meeting_place_of_an_earlier_command_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "rendezvous-0").write_text("names of the dead")
    engine = Local()
    program = "import os, sys; sys.exit(os.path.exists('rendezvous-0'))"
    handle = engine.submit(engine.plan(job(tmp_path, f"import os; os.chdir({str(tmp_path)!r}); {program}")))  # fmt: skip
    assert finish(engine, handle) == "succeeded"


@linux
@pytest.mark.parametrize("moment", [0.0, 0.005, 0.02, 0.05, 0.1])
def test_no_worker_outlives_a_parent_killed_at_any_moment(moment: float, tmp_path: Path) -> None:
    """Also in the short time in which the worker has not yet asked the kernel to be ended."""
    request = tmp_path / "job.json"
    pids = tmp_path / "pids"
    program = (
        f"import os, time; open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(600)"
    )
    request.write_bytes(msgspec.json.encode(job(tmp_path, program, size=3)))
    command = [sys.executable, "-m", "modelyard.engines.contract", "local", str(request)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as parent:
        log = tmp_path / "logs" / "rank-0.log"
        wait_for(log)
        time.sleep(moment)
        started = [child.pid for child in psutil.Process(parent.pid).children()]
        parent.kill()
    for pid in started:
        until_dead(pid)
    time.sleep(0.2)  # what was between fork and exec would have written its pid by now
    for line in pids.read_text().split() if pids.exists() else []:
        until_dead(int(line))


def test_what_a_worker_leaves_behind_is_ended_with_it(tmp_path: Path) -> None:
    """A data loader's process, say, whose worker was killed."""
    child = tmp_path / "child"
    program = (
        "import subprocess, sys, time\n"
        f"made = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(child)!r}, 'w').write(str(made.pid))\ntime.sleep(600)"
    )
    engine = Local()
    handle = engine.submit(engine.plan(job(tmp_path, program)))
    left = int(wait_for(child))
    os.kill(engine.poll(handle).workers[0].pid or 0, signal.SIGKILL)
    assert finish(engine, handle) == "failed"
    until_dead(left)


def test_ctrl_c_in_the_terminal_does_not_reach_the_workers(tmp_path: Path) -> None:
    engine = Local()
    handle = engine.submit(engine.plan(job(tmp_path, "import time; time.sleep(600)")))
    pid = engine.poll(handle).workers[0].pid or 0
    assert os.getsid(pid) == os.getpgid(pid) == pid != os.getsid(0)
    engine.cancel(handle, grace=5)


@linux
def test_a_pid_that_was_given_to_another_process_is_left_alone(tmp_path: Path) -> None:
    engine = Local()
    handle = engine.submit(engine.plan(job(tmp_path, "pass")))
    assert finish(engine, handle) == "succeeded"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as stranger:
        table = msgspec.json.decode(Path(handle).read_bytes())
        table[0] |= {"pid": stranger.pid, "exit_code": None}  # its identity is still the old one
        Path(handle).write_bytes(msgspec.json.encode(table))
        assert Local().poll(handle).state == "failed"
        Local().cancel(handle, grace=0)
        assert stranger.poll() is None
        stranger.kill()


@linux
def test_a_process_that_ended_tells_its_exit_code_until_it_is_collected() -> None:
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(5)"]) as child:
        known = identity(child.pid)
        deadline = time.monotonic() + 30
        while condition(child.pid, known).state == "running" and time.monotonic() < deadline:
            time.sleep(0.01)
        seen = condition(child.pid, known)
        assert (seen.state, seen.exit_code) == ("ended", 5)
    assert condition(child.pid, known).state == "gone"


def test_a_folder_without_permission_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where a folder must be")
    engine = Local()
    with pytest.raises(StoreError, match="logs"):
        engine.submit(engine.plan(job(tmp_path, "pass")))


def test_a_second_worker_that_cannot_start_takes_the_first_with_it(
    tmp_path: Path, new_children: Callable[[], list[psutil.Process]]
) -> None:
    engine = Local()
    plan = engine.plan(job(tmp_path, "import time; time.sleep(600)", size=2))
    (tmp_path / "logs" / "rank-1.log").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"rank-1\.log"):
        engine.submit(plan)
    assert new_children() == []


def test_an_unknown_handle_and_rank_are_refused(tmp_path: Path) -> None:
    engine = Local()
    with pytest.raises(NotFoundError, match="no process table"):
        engine.poll(str(tmp_path / "nothing.json"))
    handle = engine.submit(engine.plan(job(tmp_path, "pass")))
    with pytest.raises(NotFoundError, match="no worker 4"):
        engine.logs(handle, 4)
    assert finish(engine, handle) == "succeeded"


def test_a_full_disk_hides_no_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept in memory until the process table can be written."""
    engine, write = Local(), local._write
    handle = engine.submit(engine.plan(job(tmp_path, "import sys; sys.exit(74)")))

    def refuse(number: int) -> None:
        def fail(handle: str, _entries: object) -> None:
            raise OSError(number, os.strerror(number), handle)

        monkeypatch.setattr(local, "_write", fail)

    refuse(errno.ENOSPC)
    assert finish(engine, handle) == "failed"
    for _ in range(2):
        assert engine.poll(handle).workers[0].exit_code == 74
    assert Local().poll(handle).workers[0].exit_code is None  # another command cannot know
    refuse(errno.EIO)
    with pytest.raises(StoreError, match="Input/output"):
        engine.poll(handle)
    monkeypatch.setattr(local, "_write", write)
    engine.poll(handle)
    assert Local().poll(handle).workers[0].exit_code == 74


def test_a_start_on_a_full_disk_is_not_taken_for_a_lack_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Local()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(engine, "_start", refuse)
    with pytest.raises(DiskFull, match="free on the file system at"):
        engine.submit(engine.plan(job(tmp_path, "pass")))
