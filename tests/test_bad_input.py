"""What goes wrong in practice: each gives one clear error that names the mend, and harms nothing.

Every case is a real project on disk and a real ``yard`` process.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

IMAGES = """\
[project]
name = "shapes"
[data]
source = "images"
path = "data"
size = [8, 8]
color = "grey"
[model]
build = "mlp"
[train]
epochs = 1
[serve]
port = {port}
[deploy]
replicas = 1
"""
TABLE = """\
[project]
name = "people"
[data]
source = "csv"
path = "data.csv"
target = "ill"
[model]
build = "mlp"
[train]
epochs = 1
"""


def yard(
    folder: Path, *words: str, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*prefix, sys.executable, "-m", "modelyard.cli", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=180, env=environment
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def pictures(tmp_path: Path) -> Iterator[Path]:
    """A project of two classes, dark and bright, 20 pictures each; whatever it started is taken down."""
    random = np.random.default_rng(0)
    for name, low in (("bright", 150), ("dark", 0)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(20):
            pixels = random.integers(low, low + 100, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.png")
    (tmp_path / "yard.toml").write_text(IMAGES.format(port=free_port()))
    yield tmp_path
    yard(tmp_path, "down")


@pytest.fixture
def people(tmp_path: Path) -> Path:
    rows = [f"{20 + index},{'yes' if index % 3 else 'no'},{60 + index % 7}" for index in range(60)]
    (tmp_path / "data.csv").write_text("age,ill,weight\n" + "\n".join(rows) + "\n")
    (tmp_path / "yard.toml").write_text(TABLE)
    return tmp_path


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One clear error: a code, the words that matter, a mend, no traceback."""
    said = done.stdout + done.stderr
    assert done.returncode in (1, 2), said
    assert "Traceback" not in said
    assert "mend:" in said
    for word in words:
        assert word in said, f"{word!r} is not in: {said}"


def test_a_corrupt_png(pictures: Path) -> None:
    (pictures / "data" / "dark" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    refused(yard(pictures, "train"), "3.png", "max_unreadable")


def test_an_empty_class_folder(pictures: Path) -> None:
    (pictures / "data" / "grey").mkdir()
    refused(yard(pictures, "train"), "grey")


def test_a_missing_target_column(people: Path) -> None:
    text = (people / "data.csv").read_text()
    (people / "data.csv").write_text(text.replace("age,ill", "age,il"))
    refused(yard(people, "train"), "ill", "did you mean 'il'")


def test_text_in_a_numeric_column(people: Path) -> None:
    text = (people / "data.csv").read_text()
    (people / "data.csv").write_text(text.replace("\n25,", "\ntwenty,"))
    refused(yard(people, "train"), "age", "twenty", "7")


def test_a_row_without_a_label(people: Path) -> None:
    text = (people / "data.csv").read_text()
    (people / "data.csv").write_text(
        text.replace("\n25,yes,", "\n25,nan,").replace("\n26,no,", "\n26,,")
    )
    refused(yard(people, "train"), "ill", "missing_target")


def test_lines_that_are_no_json(people: Path) -> None:
    rows = [{"age": 20 + row, "ill": "yn"[row % 2]} for row in range(60)]
    lines = [json.dumps(row) for row in rows]
    lines[6], lines[9] = '{"age": 3', "none"
    (people / "data.jsonl").write_text("\n".join(lines))
    asked = ("data.source=jsonl", "data.path=data.jsonl")
    refused(yard(people, "train", *asked), "line 7", "line 10", "max_unreadable = 0.04")
    done = yard(people, "train", *asked, "data.max_unreadable=0.04")
    assert done.returncode == 0, done.stderr


def test_a_suffix_that_no_source_reads(people: Path) -> None:
    (people / "data.parqet").write_bytes(b"PAR1")
    asked = ("data.source=parquet", "data.path=data.parqet")
    refused(yard(people, "train", *asked), "data.parqet", "did you mean '.parquet'")
    assert "did you mean 'parquet'" in yard(people, "train", "data.source=parket").stderr


def test_a_password_in_a_url_is_not_repeated(people: Path) -> None:
    done = yard(people, "train", "data.path=s3://me:hunter2-hunter2@bucket/x")
    said = done.stdout + done.stderr
    assert done.returncode == 2 and "hunter2" not in said
    assert "holds a user name or a password" in said and "AWS_ACCESS_KEY_ID" in said


def test_no_server_at_an_address(people: Path) -> None:
    asked = f"data.path=http://127.0.0.1:{free_port()}/data.csv"
    refused(yard(people, "train", asked), "cannot be reached after 4 attempts")


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_model_whose_output_does_not_fit(pictures: Path, command: str) -> None:
    (pictures / "model.py").write_text(
        "from torch import nn\ndef build(input_shape):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"
    )
    refused(yard(pictures, command, "model.build=model:build"), "7", "2")


def test_a_model_that_raises(pictures: Path) -> None:
    (pictures / "model.py").write_text("def build():\n    return 1 / 0\n")
    refused(yard(pictures, "train", "model.build=model:build"), "model.py", "division by zero")


def test_a_port_in_use(pictures: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(yard(pictures, "up", f"serve.port={port}"), str(port), "serve.port")
        assert not (pictures / ".yard" / "runs").exists()  # and not after an hour of training
    done = yard(pictures, "up", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["deployment"]["state"] == "ready"


def test_a_full_disk(pictures: Path) -> None:
    """A real file system of 1 MB; more room afterwards, and the same command goes through."""
    store = pictures / "small"
    store.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(store)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    try:
        refused(yard(pictures, "train", "store.url=small"), "disk is full", "free some space")
        subprocess.run(["mount", "-o", "remount,size=100m", str(store)], check=True)
        done = yard(pictures, "train", "store.url=small", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["state"] == "complete"
    finally:
        subprocess.run(["umount", "-l", str(store)], check=True)


def test_a_registry_that_cannot_be_written(pictures: Path) -> None:
    """Root may write anywhere, so the command runs without that one capability."""
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("setpriv is missing: root would be able to write")
    drop = "-dac_override,-dac_read_search"
    prefix = (
        ("setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}") if os.geteuid() == 0 else ()
    )
    done = yard(pictures, "train")
    assert done.returncode == 0, done.stderr
    registry = pictures / ".yard" / "registry"
    registry.mkdir(exist_ok=True)
    registry.chmod(0o555)
    try:
        refused(yard(pictures, "up", prefix=prefix), str(registry), "permission")
    finally:
        registry.chmod(0o755)
    done = yard(pictures, "up", "--json")
    assert done.returncode == 0, done.stderr
