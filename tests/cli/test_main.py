"""The command line as a person meets it: help, mistakes, exit codes."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelyard.cli import COMMANDS


def yard(
    *words: str, folder: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``yard`` as its own process."""
    import os

    return subprocess.run(
        [sys.executable, "-m", "modelyard.cli", *words], cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip


def test_help_names_every_command() -> None:
    done = yard("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches(name: str) -> None:
    done = yard(name, "--help")
    assert done.returncode == 0
    assert "--json" in done.stdout


def test_an_unknown_command_is_answered_with_the_nearest() -> None:
    done = yard("statsu")
    assert done.returncode == 2
    assert "did you mean `yard status`?" in done.stderr


def test_no_project_here(tmp_path: Path) -> None:
    done = yard("status", folder=tmp_path)
    assert done.returncode == 1
    assert "no project file" in done.stderr
    assert "Traceback" not in done.stderr


def test_mistakes_as_json_for_scripts(tmp_path: Path) -> None:
    (tmp_path / "yard.toml").write_text('[project]\nname = "x"\n[data]\nsource = "csv"\n[modle]\n')
    done = yard("status", "--json", folder=tmp_path)
    assert done.returncode == 2
    body = json.loads(done.stdout)
    assert body["error"] == "ProjectError"
    assert {"data.path", "model", "modle"} <= {item["where"] for item in body["mistakes"]}


def test_every_mistake_is_told_in_one_run(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "yard.toml").write_text(
        '[project]\nname = "My Digits"\n[data]\nsource = "imagse"\npath = "dat"\n'
        '[model]\nbuild = "cnn-small"\nbulid = 1\n'
        '[train]\nepochs = "ten"\nbatch_size = 2\nworkers = 4\noptimizer = { name = "adamv" }\n'
    )
    done = yard("up", folder=tmp_path)
    assert done.returncode == 2
    assert "7 mistakes" in done.stderr
    places = [line.split(": ")[0].strip() for line in done.stderr.splitlines()[1:]]
    assert places == [f"yard.toml:{line}" for line in (2, 4, 5, 8, 10, 11, 13)]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / ".yard").exists()


def test_schema_and_completion_and_plugins() -> None:
    assert json.loads(yard("schema").stdout)["required"] == ["project", "data", "model"]
    assert "_shtab_yard" in yard("completion", "bash").stdout
    assert {"seam", "name"} <= set(json.loads(yard("plugins", "--json").stdout)[0])


def test_a_closed_pipe_is_no_mistake() -> None:
    done = subprocess.run(
        f"{sys.executable} -m modelyard.cli schema | head -1",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_help_starts_fast() -> None:
    """Within 150 ms, or 5 times an empty Python; a ratio, so that a busy machine does not fail it."""

    def seconds(*words: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], capture_output=True, check=True)
        return time.perf_counter() - start

    pairs = [(seconds("-m", "modelyard.cli", "--help"), seconds("-c", "pass")) for _ in range(7)]
    ours, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
    assert ours <= max(0.150, 5 * bare)
