"""Workers that a forerunner forks are like any other: same surroundings, same ends, no orphans."""

import json
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

from modelyard.engines.contract import _until, _until_logged
from modelyard.engines.forerunner import SWITCH, USABLE, Forerunner, ForerunnerLost, kept
from modelyard.engines.local import Local
from modelyard.spec.work import Job

pytestmark = pytest.mark.skipif(not USABLE, reason="forked workers are Linux only")
HANG = "import time; print('waiting', flush=True); time.sleep(600)"
SURROUNDINGS = """
import json, os, signal, sys
print(json.dumps({
    "arguments": sys.argv, "path": sys.path[0], "folder": os.getcwd(), "name": __name__,
    "environment": {k: v for k, v in os.environ.items() if "RENDEZVOUS" not in k},
    "input": os.read(0, 10).decode(), "leads": os.getsid(0) == os.getpgid(0) == os.getpid(),
    "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
    "files": sorted(os.readlink(f"/proc/self/fd/{n}").partition(":")[0] for n in range(3)),
}), flush=True)
"""


def job(
    folder: Path, *arguments: str, size: int = 2, preload: tuple[str, ...] = ("decimal",)
) -> Job:
    """``arguments`` as for Python; a program's text goes to a file."""
    if arguments[0] == "-c":
        file = folder / "program.py"
        file.write_text(arguments[1])
        arguments = (str(file), *arguments[2:])
    return Job(
        name="j", arguments=arguments, size=size, folder=str(folder), preload=preload,
        environment={"OWN": "yes"},
    )  # fmt: skip


def said(engine: Local, handle: str, rank: int) -> list[str]:
    return [line for line in engine.logs(handle, rank).splitlines() if not line.startswith("---")]


def run(engine: Local, work: Job) -> tuple[list[list[str]], list[int | None]]:
    """What each worker printed, and its exit code."""
    handle = engine.submit(engine.plan(work))
    status = _until(engine, handle, lambda now: all(w.state != "running" for w in now.workers))
    return [said(engine, handle, rank) for rank in range(work.size)], [
        worker.exit_code for worker in status.workers
    ]


def test_a_forked_worker_sees_what_one_of_its_own_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Local()
    work = job(tmp_path, "-c", SURROUNDINGS, "an argument")
    forked, _ = run(engine, work)
    engine.close()
    plain, _ = run(engine, msgspec.structs.replace(work, preload=()))
    for rank in (0, 1):
        mine, other = (json.loads(lines[rank][-1]) for lines in (forked, plain))
        assert mine == other
        assert mine["environment"]["RANK"] == str(rank) and mine["environment"]["OWN"] == "yes"


def test_imports_are_shared_and_the_switch_turns_them_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Local()
    work = job(tmp_path, "-c", "import sys; print('decimal' in sys.modules)")
    assert run(engine, work)[0] == [["True"], ["True"]]
    monkeypatch.setenv(SWITCH, "1")
    assert [lines[-1] for lines in run(engine, work)[0]] == ["False", "False"]
    engine.close()


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("raise SystemExit(7)", 7, None),
        ("import sys; sys.exit('no more')", 1, "no more"),
        ("raise ValueError('lost')", 1, "ValueError: lost"),
        ("import os; os.kill(os.getpid(), 11)", -11, None),
        ("import atexit; atexit.register(print, 'after')", 0, "after"),
    ],
)
def test_every_end_is_as_the_interpreter_makes_it(
    program: str, code: int, words: str | None, tmp_path: Path
) -> None:
    engine = Local()
    lines, codes = run(engine, job(tmp_path, "-c", program, size=1))
    engine.close()
    assert codes == [code]
    assert words is None or lines[0][-1] == words


def test_a_module_is_run_as_main_with_its_arguments(tmp_path: Path) -> None:
    engine = Local()
    lines, codes = run(engine, job(tmp_path, "-m", "base64", "-t", size=1))
    engine.close()
    assert codes == [0] and "Aladdin:open sesame" in "".join(lines[0]), lines


def test_numpy_draws_other_numbers_in_each_worker(tmp_path: Path) -> None:
    engine = Local()
    program = "import numpy; print(numpy.random.random())"
    lines, _ = run(engine, job(tmp_path, "-c", program, preload=("numpy.random",)))
    engine.close()
    assert lines[0] != lines[1]


def test_a_killed_forerunner_takes_its_workers_along_and_is_replaced(
    tmp_path: Path, new_children: Callable[[], list[psutil.Process]]
) -> None:
    engine = Local()
    work = job(tmp_path, "-c", HANG)
    handle = engine.submit(engine.plan(work))
    _until_logged(engine, handle, "waiting")
    (forerunner,) = new_children()
    assert {w.pid for w in engine.poll(handle).workers} == {c.pid for c in forerunner.children()}
    forerunner.kill()
    status = _until(engine, handle, lambda now: all(w.state == "failed" for w in now.workers))
    assert all(worker.exit_code in (None, -signal.SIGKILL) for worker in status.workers)
    again = engine.submit(engine.plan(msgspec.structs.replace(work, attempt=1)))
    _until_logged(engine, again, "waiting")
    assert engine.poll(again).state == "running"
    engine.cancel(again, grace=0)
    engine.close()
    assert new_children() == []


def test_closing_ends_the_forerunner_and_what_is_left_of_its_workers(tmp_path: Path) -> None:
    engine = Local()
    handle = engine.submit(engine.plan(job(tmp_path, "-c", HANG)))
    _until_logged(engine, handle, "waiting")
    engine.close()
    _until(engine, handle, lambda now: all(w.state == "failed" for w in now.workers))


def _until_there(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was not made"
        time.sleep(0.005)


@pytest.mark.parametrize("moment", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_no_worker_outlives_a_parent_killed_at_any_moment(moment: float, tmp_path: Path) -> None:
    request, pids = tmp_path / "job.json", tmp_path / "pids"
    program = f"import os; open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n'); {HANG}"
    request.write_bytes(msgspec.json.encode(job(tmp_path, "-c", program, size=3)))
    command = [sys.executable, "-m", "modelyard.engines.contract", "local", str(request)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as parent:
        log = tmp_path / "logs" / "forerunner.log"
        _until_there(log)
        time.sleep(moment)
        started = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    time.sleep(0.3)  # what was between fork and exec would have written its pid by now
    written = [int(line) for line in pids.read_text().split()] if pids.exists() else []
    deadline = time.monotonic() + 20
    for pid in [*(process.pid for process in started), *written]:
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"{pid} still runs"
            time.sleep(0.02)


def test_a_forerunner_that_cannot_start_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its interpreter ends at once: the worker is then started by itself, and says why."""
    with pytest.raises(ForerunnerLost):
        (tmp_path / "logs").mkdir()
        lost = Forerunner([], {"PYTHONHOME": "/nowhere"}, tmp_path / "logs" / "forerunner.log")
        lost.fork(0, ["-c", "pass"], {}, tmp_path / "logs" / "rank-0.log")
    lost.close()
    engine = Local()
    work = msgspec.structs.replace(
        job(tmp_path, "-c", "pass", size=1), environment={"PYTHONHOME": "/nowhere"}
    )
    _, codes = run(engine, work)
    assert codes == [1]
    engine.close()


def test_nothing_is_left_open(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    engine = Local()
    run(engine, job(tmp_path, "-c", "pass"))
    engine.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


def _parent(engine: Local, work: Job) -> int:
    """The forerunner that the one worker of ``work`` came from."""
    return int(run(engine, work)[0][0][-1])


def test_jobs_one_after_another_share_one_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they need the same imports, variables and folder; and it does not outlive the block."""
    work = job(tmp_path, "-c", "import os; print(os.getppid())", size=1)
    other = msgspec.structs.replace(work, preload=("fractions",))

    def parent(work: Job) -> int:
        engine = Local()
        try:
            return _parent(engine, work)
        finally:
            engine.close()

    with kept(2, apart_from=("FREE",)):
        first = parent(work)
        monkeypatch.setenv("FREE", "yes")
        assert parent(work) == first
        second = parent(other)
        assert second != first and parent(work) == first
        monkeypatch.setenv("BOUND", "yes")
        assert parent(work) not in (first, second)  # and was kept in place of the oldest
        assert not psutil.pid_exists(second)
        monkeypatch.delenv("BOUND")
        assert parent(work) == first
        os.kill(first, signal.SIGKILL)
        third = parent(work)
        assert third != first
    assert not psutil.pid_exists(third)
    assert parent(work) != parent(work)


def test_one_with_a_worker_left_is_not_kept(tmp_path: Path) -> None:
    engine = Local()
    with kept():
        handle = engine.submit(engine.plan(job(tmp_path, "-c", HANG)))
        _until_logged(engine, handle, "waiting")
        engine.close()
        _until(engine, handle, lambda now: all(w.state == "failed" for w in now.workers))
