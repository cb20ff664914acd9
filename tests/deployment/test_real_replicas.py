"""The bars again, with the real inference server in the replicas."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from modelyard.deployment.targets.local import Local
from modelyard.spec.errors import DeploymentError
from modelyard.spec.records import Deployment, Service


@pytest.fixture
def target() -> Local:
    return Local(cores=2)


@pytest.fixture
def weights(tmp_path: Path, small_bundle: Any) -> Any:
    return small_bundle(tmp_path / "real-bundle")


@pytest.fixture
def real(service: Service, tmp_path: Path, weights: Any) -> Service:
    return msgspec.structs.replace(service, bundle_folder=str(tmp_path / "real-bundle"))


@pytest.fixture
def ask_model(weights: Any) -> Callable[[Any, int], str]:
    """Ask for one row by the Open Inference Protocol, compare with NumPy's answer."""

    def ask(client: Any, number: int) -> str:
        row = np.array([number, 1, 2, number / 4], np.float32)
        tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": row.tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
        status, headers, answer = client.ask("POST", "/v2/models/toy/infer", body)
        assert status == 200, (status, answer)
        data = json.loads(answer)["outputs"][0]["data"]
        np.testing.assert_allclose(np.ravel(data), row @ weights, rtol=1e-5)
        return str(headers["x-modelyard-version"])

    return ask


def test_a_killed_replica_under_load_costs_no_request_and_is_back_within_5_seconds(
    target: Local, real: Service, folder: Path, load: Any, ask_model: Any, wait_until: Any
) -> None:
    up = target.apply(folder, target.plan(real))
    before = up.replicas[1]
    assert before.pid is not None
    with load(up.url, ask_model) as running:
        running.wait_for_more(200)
        os.kill(before.pid, signal.SIGKILL)
        killed = time.monotonic()
        wait_until(
            folder, lambda seen: seen.state == "ready" and seen.replicas[1].pid != before.pid
        )
        seconds = time.monotonic() - killed
        running.wait_for_more(200)
    assert not running.errors, running.errors[:2]
    assert seconds < 5, seconds


def test_a_new_version_under_load_costs_no_request(
    target: Local, real: Service, folder: Path, load: Any, ask_model: Any
) -> None:
    up = target.apply(folder, target.plan(real))
    with load(up.url, ask_model) as running:
        running.wait_for_more(100)
        target.apply(folder, target.plan(msgspec.structs.replace(real, version=2)))
        after = len(running.answers) + 16
        running.wait_for_more(100)
    assert not running.errors, running.errors[:2]
    assert set(running.answers[after:]) == {"2"}
    assert running.answers[0] == "1"


def test_a_bundle_whose_answers_are_wrong_never_serves(
    target: Local, real: Service, folder: Path
) -> None:
    up: Deployment = target.apply(folder, target.plan(real))
    golden = Path(real.bundle_folder) / "golden.safetensors"
    content = bytearray(golden.read_bytes())
    content[-2] ^= 0x7F  # an exponent's bits of the last recorded output
    golden.write_bytes(bytes(content))
    with pytest.raises(DeploymentError, match="toy:1 keeps serving"):
        target.apply(folder, target.plan(msgspec.structs.replace(real, version=2)))
    seen = target.observe(folder)
    assert seen is not None
    assert [one.pid for one in seen.replicas] == [one.pid for one in up.replicas]


def test_replicas_end_when_the_supervisor_is_killed(
    target: Local, real: Service, folder: Path
) -> None:
    up = target.apply(folder, target.plan(real))
    assert up.supervisor_pid is not None
    replicas = [psutil.Process(one.pid) for one in up.replicas if one.pid]
    os.kill(up.supervisor_pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(replicas, timeout=10)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
    assert target.apply(folder, target.plan(real)).state == "ready"
