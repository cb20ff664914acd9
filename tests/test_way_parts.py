"""The whole way with pictures, texts and numbers in one table: checked, trained by two workers, served, asked."""

import base64
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.data.mixed_rows import write_goods

pytest.importorskip("torch")
pytestmark = pytest.mark.slow
PROJECT = """
[project]
name = "goods"
[data]
source = "csv"
path = "goods"
image = "photo"
text = "title"
size = [12, 12]
length = 8
[model]
build = "fusion"
args = {{ width = 16, channels = [8, 16], hidden = 32 }}
[train]
epochs = 6
batch_size = 16
workers = 2
[train.optimizer]
lr = 0.01
[serve]
port = {port}
[deploy]
replicas = 1
"""


def yard(folder: Path, *words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "modelyard.cli", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout) if "--json" in words else done.stdout


@pytest.fixture(scope="module")
def goods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    folder = tmp_path_factory.mktemp("goods")
    write_goods(folder / "goods", 400)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "yard.toml").write_text(PROJECT.format(port=port))
    yield folder, yard(folder, "up", "--json")
    yard(folder, "down")


def sample(folder: Path, **changed: Any) -> dict[str, Any]:
    content = (folder / "goods/photos/0.png").read_bytes()
    row = {
        "photo": base64.b64encode(content).decode(),
        "title": "a red sun",
        "price": 10,
        "size": "m",
    }
    return {**row, **changed}


def ask(way: Any, path: str, content: Any) -> Any:
    body, kind = json.dumps(content).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{way['deployment']['url']}{path}", body, kind)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_it_learns_what_only_all_parts_tell(goods: tuple[Path, Any]) -> None:
    way = goods[1]
    assert way["run"]["world_size"] == 2
    assert way["run"]["metrics"]["test/accuracy"] >= 0.9, "by one part alone no more than a quarter"
    assert way["bundle"]["parity"]["largest_error"] <= 1e-4


def test_each_part_changes_the_answer(goods: tuple[Path, Any]) -> None:
    folder, way = goods
    rows = [
        sample(folder),
        sample(folder, title="blue rain"),
        sample(folder, price=18),
        sample(folder, title="blue rain", price=18),
    ]
    answers = ask(way, "/predict", {"rows": rows})["predictions"]
    labels = [answer["label"] for answer in answers]
    assert [label[1:] for label in labels] == ["00", "10", "01", "11"]
    (folder / "row.json").write_text(json.dumps(rows[3]))
    found = yard(folder, "predict", "row.json", "--json")
    assert labels[3] in json.dumps(found)


def test_tensors_are_asked_for_by_name(goods: tuple[Path, Any]) -> None:
    way = goods[1]
    inputs = [
        {"name": "image", "datatype": "FP32", "shape": [2, 3, 12, 12], "data": [0.0] * 864},
        {"name": "text", "datatype": "INT64", "shape": [2, 8], "data": [1] * 16},
        {"name": "table", "datatype": "FP32", "shape": [2, 3], "data": [0.0] * 6},
    ]
    (output,) = ask(way, "/v2/models/goods/infer", {"inputs": inputs})["outputs"]
    assert output["shape"] == [2, 8]
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(way, "/v2/models/goods/infer", {"inputs": inputs[:2]})
    assert "input 'table' is missing" in json.load(caught.value)["error"]


def test_a_row_that_cannot_be_read_is_told_by_its_column(goods: tuple[Path, Any]) -> None:
    folder, way = goods
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(way, "/predict", {"row": sample(folder, photo="no picture")})
    assert caught.value.code == 400
    assert "column 'photo': this is no base64" in json.load(caught.value)["error"]


def test_a_killed_worker_leaves_no_trace_in_the_weights(goods: tuple[Path, Any]) -> None:
    yard(goods[0], "verify-resume")
