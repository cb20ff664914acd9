"""The worker processes of a contract's checks: forked from one process that has imported, or each of its own."""

import os
import sys
from pathlib import Path

import pytest

from modelyard.backends import contract_workers
from modelyard.backends.contract_workers import run_plans

PROGRAM = """
import os, sys, time
from pathlib import Path

words = Path(sys.argv[1]).read_text().split()
print(__name__, os.getppid(), len(sys.argv), flush=True)
if words[0] == "wait":
    time.sleep(60)
if words[0] == "vanish":
    os._exit(9)
sys.exit(int(words[1]))
"""


@pytest.fixture(params=[True, False], ids=["forked", "each of its own"])
def forked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bool:
    monkeypatch.setattr(contract_workers, "_FORKS", request.param)
    (tmp_path / "a_program.py").write_text(PROGRAM)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    return bool(request.param)


def plans(folder: Path, *words: str) -> list[Path]:
    made = [folder / f"rank-{rank}.json" for rank in range(len(words))]
    for plan, text in zip(made, words, strict=True):
        plan.write_text(text)
    return made


def said(plan: Path) -> list[str]:
    return plan.with_suffix(".log").read_text().split()


@pytest.mark.skipif(sys.platform != "linux", reason="forked workers are Linux only")
def test_each_plan_is_run_as_main_with_a_log_of_its_own(forked: bool, tmp_path: Path) -> None:
    files = plans(tmp_path, "end 0", "end 3", "vanish")
    assert run_plans("none", "a_program", files, 30) == [0, 3, 9]
    parents = {said(file)[1] for file in files}
    assert {said(file)[0] for file in files} == {"__main__"}
    assert all(said(file)[2] == "2" for file in files)
    # The parent is one that imported, and serves the next request too.
    assert (parents == {str(os.getpid())}) is not forked
    assert run_plans("none", "a_program", files[:1], 30) == [0]
    assert {said(files[0])[1]} == parents


@pytest.mark.skipif(sys.platform != "linux", reason="forked workers are Linux only")
def test_one_that_does_not_end_is_killed(forked: bool, tmp_path: Path) -> None:
    assert run_plans("none", "a_program", plans(tmp_path, "wait"), 1.0) == [-9]
    files = plans(tmp_path, "end 4")
    assert run_plans("none", "a_program", files, 30) == [4]
