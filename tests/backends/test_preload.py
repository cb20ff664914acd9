"""What workers import first is read from the model's text, and lists nothing that would harm a fork."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelyard.backends.preload import preload
from modelyard.training.attempts import _PRELOAD


def test_a_built_in_and_code_that_names_a_framework(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import parts\ndef build(): ...\n")
    (tmp_path / "parts.py").write_text("from torch import nn\n")
    built_in = preload(tmp_path, "cnn-small")
    assert "modelyard.backends.pytorch" in built_in
    assert preload(tmp_path, "model:build") == built_in


@pytest.mark.parametrize("text", ["def build(): ...", "import torch as", None])
def test_code_that_names_none_or_cannot_be_read_needs_none(
    tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "model.py").write_text(text)
    assert preload(tmp_path, "model:build") == ()


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_what_is_listed_starts_no_thread_and_is_there() -> None:
    modules = (*_PRELOAD, *preload(Path(), "mlp"))
    program = (
        "import importlib, os, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "import torch\n"
        "print(len(os.listdir('/proc/self/task')), torch.cuda.is_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *modules],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["1", "False"]
