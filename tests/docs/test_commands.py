"""The commands of the pages do what the pages say: they are run, in their order, on real projects."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
BINARIES = Path(sys.executable).parent
ELSEWHERE = {
    "make install": "the tests run where it has been done",
    "make demo": "CI's other half; see examples/demo.sh",
    "make test": "this is it",
    ". .venv/bin/activate": "the tests put it on PATH",
    "yard tensorboard": "stays until Ctrl-C; its files are tested in tests/training",
}


def commands(page: Path) -> list[str]:
    """The command lines in the fenced blocks of a page, without their comments."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    blocks = [text for language, text in fences if not language]
    lines = [re.split(r"\s+# ", line)[0].strip() for block in blocks for line in block.splitlines()]
    words = ("yard ", "curl ", "cd ", "make ", ". ")
    return [part for line in lines for part in line.split(" && ") if part.startswith(words)]


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md", "docs/how-to.md"])
def test_the_commands_of_a_page(page: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{BINARIES}:{os.environ['PATH']}",
        "YARD_SERVE_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    folder, ran = tmp_path, 0
    lines = commands(ROOT / page)
    if "how-to" in page:  # it begins where the tutorial ends
        lines = ["yard new digits --template image-classification", "cd digits", "yard up", *lines]
    try:
        for line in lines:
            if line in ELSEWHERE:
                continue
            if line.startswith("cd "):
                folder = folder / line.removeprefix("cd ")
                continue
            words = shlex.split(line.replace(":8080", f":{port}"))
            done = subprocess.run(
                words, cwd=folder, env=environment, capture_output=True, text=True, timeout=200
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            ran += 1
    finally:
        for project in tmp_path.glob("**/yard.toml"):
            down = ["yard", "down", "--project", str(project)]
            subprocess.run(down, env=environment, check=True, capture_output=True)
    assert ran >= 8
