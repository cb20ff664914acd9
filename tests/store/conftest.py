"""Other processes that use the store: killed in the middle, at the same time, without permission."""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelyard.store import Store, open_store

SRC = Path(__file__).parents[2] / "src"


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that runs ``code``; it prints ``ready`` before its work."""
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SRC)!r})\n{code}"]
        + [str(argument) for argument in arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def run_together() -> Callable[..., None]:
    """Run the same ``code`` in one process for each of ``arguments``, all at once, to their end."""

    def run(code: str, arguments: list[tuple[object, ...]]) -> None:
        processes = [start(code, *given) for given in arguments]
        errors = [process.communicate(timeout=60)[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), errors

    return run


@pytest.fixture
def kill_in_the_middle() -> Callable[..., None]:
    """Start ``code``, wait for its ``ready``, and SIGKILL it after a random moment."""
    moments = random.Random(0)

    def kill(code: str, *arguments: object, within: float = 0.03) -> None:
        process = start(code, *arguments)
        assert process.stdout is not None
        line = process.stdout.readline()
        time.sleep(moments.uniform(0, within))
        process.kill()
        _, errors = process.communicate()
        assert line == "ready\n", errors
        assert process.returncode == -9, errors

    return kill


@pytest.fixture
def without_permission() -> Callable[..., str]:
    """Run ``code`` in a process to which file modes apply even where the tests run as root."""

    def run(code: str, *arguments: object) -> str:
        program = shutil.which("setpriv")
        if program is None:
            pytest.skip("setpriv (Debian: util-linux) is not installed")
        taken = "-dac_override,-dac_read_search,-fowner"
        done = subprocess.run(
            [program, f"--bounding-set={taken}", f"--inh-caps={taken}", sys.executable, "-c"]
            + [f"import sys; sys.path.insert(0, {str(SRC)!r})\n{code}"]
            + [str(argument) for argument in arguments],
            capture_output=True,
            text=True,
            timeout=60,
        )
        if "setpriv:" in done.stderr:
            pytest.skip(f"setpriv may not drop capabilities here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def write_bundle(folder: Path, text: str = "weights") -> Path:
    """A folder of a bundle's shape; another ``text`` gives another digest."""
    described = {
        "name": "digits",
        "created": "2026-11-24T01:00:00+00:00",
        "description": "Reads one digit.",
        "lineage": {"code": "sha256:1234"},
    }
    for name, content in {
        "bundle.json": json.dumps(described),
        "model.onnx": text * 1000,
        "card.md": "# digits\n",
        "golden.safetensors": "golden",
        "samples/0.png": "picture",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / ".yard")


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str = "weights") -> Path:
        return write_bundle(tmp_path / f"bundle-{text}", text)

    return write
