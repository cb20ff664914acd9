"""The whole way, as a user goes it: every command real, on the digits project."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow


def yard(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "modelyard.cli", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=280, env=environment
    )


def as_json(folder: Path, *words: str) -> Any:
    done = yard(folder, *words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def stages(way: dict[str, Any]) -> dict[str, bool]:
    return {stage["name"]: stage["current"] for stage in way["stages"]}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The template, brought up once on a free port with two workers and two replicas."""
    parent = tmp_path_factory.mktemp("way")
    assert yard(parent, "new", "digits", "--template", "image-classification").returncode == 0
    folder = parent / "digits"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = (folder / "yard.toml").read_text()
    (folder / "yard.toml").write_text(text.replace("port = 8080", f"port = {port}"))
    yield folder
    assert yard(folder, "down").returncode == 0


@pytest.fixture(scope="module")
def way(digits: Path) -> Any:
    return as_json(digits, "up")


def test_preflight_finds_nothing_wrong(digits: Path) -> None:
    checks = {check["name"]: check["state"] for check in as_json(digits, "check")}
    assert {"project", "data", "step", "export", "estimate"} <= set(checks)
    assert "failed" not in checks.values()


def test_two_workers_really_trained(way: Any) -> None:
    run = way["run"]
    assert run["world_size"] == 2
    assert len({worker["pid"] for worker in run["workers"]}) >= 2
    assert run["metrics"]["test/accuracy"] >= 0.97


def test_the_bundle_is_proved(way: Any) -> None:
    assert way["bundle"]["parity"]["largest_error"] <= 1e-4
    assert way["version"]["version"] == 1


def test_the_service_answers_a_picture_as_it_is(digits: Path, way: Any) -> None:
    picture = sorted((digits / "data" / "7").glob("*.png"))[0]
    request = urllib.request.Request(f"{way['deployment']['url']}/predict", picture.read_bytes())
    with urllib.request.urlopen(request) as response:
        answer = json.load(response)
    assert answer["predictions"][0]["label"] == "7"
    metrics = urllib.request.urlopen(f"{way['deployment']['url']}/metrics").read().decode()
    assert "modelyard_request_duration_seconds_count" in metrics


def test_the_service_gives_the_framework_models_answer(digits: Path, way: Any) -> None:
    """The answer is worked out again here, from the checkpoint, in PyTorch."""
    torch = pytest.importorskip("torch")
    from modelyard.backends.snapshots import read_weights
    from modelyard.data.preprocess import encode
    from modelyard.flow import prepare, read

    project = read(digits)
    dataset = prepare(project)
    namespace: dict[str, Any] = {}
    exec((digits / "model.py").read_text(), namespace)
    model = namespace["build"](input_shape=dataset.input.shape, outputs=10)
    weights = read_weights(Path(way["run"]["best"]["folder"])).tensors
    model.load_state_dict(
        {
            name.removeprefix("model."): torch.from_numpy(np.array(value))
            for name, value in weights.items()
        }
    )
    model.eval()
    picture = sorted((digits / "data" / "3").glob("*.png"))[0].read_bytes()
    with torch.inference_mode():
        expected = model(torch.from_numpy(encode(dataset.input, [picture]))).softmax(1).numpy()[0]
    (digits / "three.png").write_bytes(picture)
    answer = as_json(digits, "predict", "three.png")[0]
    got = [answer["probabilities"][str(number)] for number in range(10)]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_triton_client_gets_the_same_answer(digits: Path, way: Any) -> None:
    http = pytest.importorskip("tritonclient.http")
    from modelyard.data.preprocess import encode
    from modelyard.flow import prepare

    picture = sorted((digits / "data" / "3").glob("*.png"))[0].read_bytes()
    inputs = encode(prepare(digits).input, [picture])
    client = http.InferenceServerClient(way["deployment"]["url"].removeprefix("http://"))
    assert client.is_server_ready()
    tensor = http.InferInput("input", list(inputs.shape), "FP32")
    tensor.set_data_from_numpy(inputs)
    logits = client.infer("digits", [tensor]).as_numpy("output")
    client.close()
    assert logits.shape == (1, 10)
    assert int(logits.argmax()) == 3


def test_again_nothing_is_run(digits: Path, way: Any) -> None:
    (digits / "model.py").touch()
    again = as_json(digits, "up")
    assert again["changed"] is False
    assert again["run"]["id"] == way["run"]["id"]
    assert set(stages(again).values()) == {True}


def test_a_change_in_the_model_runs_training_and_what_follows(digits: Path, way: Any) -> None:
    text = (digits / "model.py").read_text()
    (digits / "model.py").write_text(text + "\n# a change\n")
    try:
        planned = as_json(digits, "up", "--dry-run")
        assert stages(planned) == {
            "data": True,
            "train": False,
            "bundle": False,
            "registry": False,
            "service": False,
        }
        assert "code" in planned["stages"][1]["reason"]
    finally:
        (digits / "model.py").write_text(text)


def test_a_new_version_replaces_the_old_one_behind_the_same_address(digits: Path, way: Any) -> None:
    second = as_json(digits, "up", "train.epochs=3")
    assert second["version"]["version"] == 2
    assert second["deployment"]["url"] == way["deployment"]["url"]
    assert {
        replica["version"]
        for replica in second["deployment"]["replicas"]
        if replica["state"] == "ready"
    } == {2}
    assert second["dataset"]["id"] == way["dataset"]["id"]
    back = as_json(digits, "up")
    assert back["version"]["version"] == 1


def test_looking_around(digits: Path, way: Any) -> None:
    assert len(as_json(digits, "runs")) >= 1
    assert as_json(digits, "runs", way["run"]["id"])["id"] == way["run"]["id"]
    assert as_json(digits, "models")[0]["name"] == "digits"
    assert yard(digits, "logs").returncode == 0
    report = Path(as_json(digits, "report")["report"])
    assert "<svg" in report.read_text() or "data:image" in report.read_text()
    folder = Path(as_json(digits, "tensorboard", "--write-only")["folder"])
    assert list(folder.rglob("*tfevents*"))
    assert as_json(digits, "status")["deployment"]["state"] == "ready"


def test_the_same_verbs_in_python(digits: Path, way: Any) -> None:
    import modelyard

    run = modelyard.train(digits)
    assert run.id == way["run"]["id"]
    assert "<table>" in run._repr_html_()
    answers = modelyard.predict(
        digits,
        [sorted((digits / "data" / "5").glob("*.png"))[0].read_bytes()],
        reference="digits:1",
    )
    assert answers[0]["label"] == "5"
