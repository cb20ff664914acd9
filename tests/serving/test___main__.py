"""The serving process from start to end: ready, overloaded, draining, refused, orphaned."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

Start = Callable[..., Any]
Bundle = Callable[..., Any]

GOOD = {"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
INFER = "/v2/models/small/infer"


def test_ready_is_told_by_a_whole_file(bundle: Bundle, start: Start) -> None:
    server = start(bundle()).wait_ready()
    assert server.about == {
        "pid": server.process.pid,
        "host": "127.0.0.1",
        "port": server.about["port"],
        "version": 3,
        "digest": "sha256:abc",
    }
    assert httpx.get(server.url + "/v2/health/ready").json() == {"ready": True}
    assert server.stop() == 0
    assert [e["event"] for e in server.events()] == ["starting", "ready", "draining", "stopped"]


def test_no_training_framework_is_loaded(
    bundle: Bundle, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    server = start(bundle("image")).wait_ready()
    picture = httpx.get(server.url + "/samples/0").content
    assert httpx.post(server.url + "/predict", content=picture).status_code == 200
    assert server.stop() == 0
    imported = set(re.findall(r"^import time:.*\|\s+([\w.]+)$", server.log.read_text(), re.M))
    assert {"onnxruntime", "numpy"} <= imported  # the log is what it seems
    tops = {name.partition(".")[0] for name in imported}
    assert not tops & {"torch", "tensorflow", "keras", "jax", "onnx", "sklearn", "pandas"}


def test_another_answer_than_recorded_never_becomes_ready(bundle: Bundle, start: Start) -> None:
    made = bundle()
    path = made.folder / "golden.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40  # one bit of the last recorded number
    path.write_bytes(content)
    server = start(made)
    assert server.process.wait(30) == 1
    assert not server.ready_file.exists()
    failed = server.events()[-1]
    assert failed["event"] == "failed"
    assert "does not give the answers that were recorded" in failed["error"]
    assert failed["mend"]


def test_a_damaged_bundle_is_one_line_and_exit_1(bundle: Bundle, start: Start) -> None:
    made = bundle()
    (made.folder / "model.onnx").write_bytes(b"\x00garbage")
    server = start(made)
    assert server.process.wait(30) == 1
    assert "model.onnx cannot be loaded" in server.events()[-1]["error"]


def test_a_port_in_use_is_one_line_with_the_mend(bundle: Bundle, start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = start(bundle(), "--port", str(port))
        assert server.process.wait(30) == 1
    [failed] = server.events()
    assert f"cannot listen on 127.0.0.1:{port}" in failed["error"]
    assert "another serve.port" in failed["mend"]


def test_a_ready_file_that_cannot_be_written_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "modelyard.serving", "--bundle", str(bundle().folder)]
    command += ["--ready-file", str(tmp_path / "file" / "ready.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (
        "ready.json" in json.loads(done.stderr.splitlines()[-1])["error"] or "file" in done.stderr
    )


def slow(bundle: Bundle) -> Any:
    """A model that takes about a tenth of a second a call."""
    return bundle(work=900)


def test_batches_form_by_themselves_under_load(bundle: Bundle, start: Start) -> None:
    server = start(slow(bundle)).wait_ready()

    def ask(number: int) -> float:
        body = {"inputs": [GOOD["inputs"][0] | {"data": [number, -number, 1, 0.5]}]}
        answer = httpx.post(server.url + INFER, json=body, timeout=30).json()
        expected = server.made.expected(np.array([[number, -number, 1, 0.5]], np.float32))
        return float(np.abs(np.array(answer["outputs"][0]["data"]) - expected.ravel()).max())

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(ask, range(48))) < 1e-3
    text = httpx.get(server.url + "/metrics").text
    [singles] = re.findall(r'modelyard_batch_size_bucket\{le="1.0".*\} (.+)', text)
    [calls] = re.findall(r"modelyard_batch_size_count\{.*\} (.+)", text)
    [rows] = re.findall(r"modelyard_batch_size_sum\{.*\} (.+)", text)
    assert float(calls) > float(singles)
    assert float(rows) > 2 * float(calls)


def test_overload_is_refused_at_once_and_passes(bundle: Bundle, start: Start) -> None:
    server = start(slow(bundle), "--max-batch", "1", "--timeout-seconds", "0.5").wait_ready()

    def ask(_: int) -> tuple[int, dict[str, str], str]:
        answer = httpx.post(server.url + INFER, json=GOOD, timeout=30)
        return answer.status_code, dict(answer.headers), answer.text

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(96)))
    codes = [code for code, _, _ in answers]
    assert set(codes) <= {200, 503, 504}
    assert 200 in codes  # it goes on answering what it can
    refused = [(headers, text) for code, headers, text in answers if code == 503]
    assert refused
    for headers, text in refused:
        assert int(headers["retry-after"]) >= 1
        assert "overloaded" in json.loads(text)["error"]
    until = time.monotonic() + 20
    while httpx.post(server.url + INFER, json=GOOD, timeout=30).status_code != 200:
        assert time.monotonic() < until, "it did not recover"
        time.sleep(0.1)
    text = httpx.get(server.url + "/metrics").text
    assert sum(map(float, re.findall(r"modelyard_shed_total\{.*\} (.+)", text))) >= len(refused)


def test_probes_are_answered_while_inference_is_busy(bundle: Bundle, start: Start) -> None:
    server = start(bundle(work=2200), "--max-batch", "1").wait_ready()
    with ThreadPoolExecutor(3) as pool:
        asking = [
            pool.submit(httpx.post, server.url + INFER, json=GOOD, timeout=60) for _ in range(3)
        ]
        probes = 0
        while not all(future.done() for future in asking):
            assert httpx.get(server.url + "/v2/health/live", timeout=10).status_code == 200
            assert httpx.get(server.url + "/metrics", timeout=10).status_code == 200
            probes += 1
        assert [future.result().status_code for future in asking] == [200] * 3
    assert probes >= 3


def test_sigterm_finishes_what_is_in_flight(bundle: Bundle, start: Start) -> None:
    server = start(bundle(work=2200), "--max-batch", "1").wait_ready()

    async def stop_amid() -> list[int]:
        async with httpx.AsyncClient(timeout=60) as http:
            asking = [
                asyncio.create_task(http.post(server.url + INFER, json=GOOD)) for _ in range(4)
            ]
            inflight = 0.0
            while inflight < 4:
                text = (await http.get(server.url + "/metrics")).text
                inflight = float(re.findall(r"modelyard_inflight_requests\{.*\} (.+)", text)[0])
                assert not any(task.done() for task in asking), (
                    "the model is too fast for this test"
                )
            server.process.send_signal(signal.SIGTERM)
            return [answer.status_code for answer in await asyncio.gather(*asking)]

    assert asyncio.run(stop_amid()) == [200] * 4
    assert server.process.wait(20) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url + "/v2")


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.2, 0.4])
def test_sigterm_at_any_moment_of_the_start_ends_it_quietly(
    bundle: Bundle, start: Start, moment: float
) -> None:
    server = start(bundle())
    time.sleep(moment)
    server.process.send_signal(signal.SIGTERM)
    # Before the interpreter has our handler, the signal itself ends the process.
    assert server.process.wait(20) in (0, -signal.SIGTERM)
    assert "Traceback" not in server.log.read_text()


def test_a_client_that_went_away_is_not_inferred(bundle: Bundle, start: Start) -> None:
    server = start(bundle(work=2200), "--max-batch", "1").wait_ready()

    async def impatient() -> None:
        async with httpx.AsyncClient() as http:
            first = asyncio.create_task(http.post(server.url + INFER, json=GOOD, timeout=60))
            await asyncio.sleep(0.05)
            short = httpx.Timeout(60, read=0.05)
            others = [http.post(server.url + INFER, json=GOOD, timeout=short) for _ in range(5)]
            for error in await asyncio.gather(*others, return_exceptions=True):
                assert isinstance(error, httpx.ReadTimeout)
            assert (await first).status_code == 200

    def calls() -> float:
        text = httpx.get(server.url + "/metrics").text
        return float(re.findall(r"modelyard_batch_size_count\{.*\} (.+)", text)[0])

    before = calls()
    asyncio.run(impatient())
    until = time.monotonic() + 20
    while True:
        text = httpx.get(server.url + "/metrics").text
        gone = re.findall(r'duration_seconds_count\{code="499".*\} (.+)', text)
        if gone and float(gone[0]) == 5:
            break
        assert time.monotonic() < until, text
        time.sleep(0.05)
    assert calls() - before <= 2  # the first, and at most one that was just being started


def test_a_slow_body_does_not_hold_a_place_for_ever(bundle: Bundle, start: Start) -> None:
    server = start(bundle(), "--timeout-seconds", "0.3").wait_ready()
    with socket.create_connection(("127.0.0.1", server.about["port"]), 10) as link:
        link.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n[1,")
        link.settimeout(30)
        began = time.monotonic()
        answer = link.recv(65536)
    assert time.monotonic() - began > 4  # the limit on inference is not the limit on slow lines
    assert b" 408 " in answer.splitlines()[0]
    assert httpx.get(server.url + "/v2/health/ready").status_code == 200


def test_what_is_not_http_harms_nobody(bundle: Bundle, start: Start) -> None:
    server = start(bundle()).wait_ready()
    for junk in (
        b"\x16\x03\x01\x00\xa5",
        b"GET\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.about["port"]), 10) as link:
            link.sendall(junk + b"\r\n\r\n")
            link.settimeout(10)
            assert b" 400 " in link.recv(65536)
    assert httpx.post(server.url + INFER, json=GOOD).status_code == 200
    assert "Traceback" not in server.log.read_text()


def test_it_ends_when_its_parent_dies(bundle: Bundle, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    parent_code = (
        "import os, subprocess, sys, threading, time\n"
        "command = [sys.executable, '-m', 'modelyard.serving', *sys.argv[1:], '--parent-pid', str(os.getpid())]\n"
        # Started from a thread that ends: that alone must not end the replica.
        "thread = threading.Thread(target=subprocess.Popen, args=(command,)); thread.start(); thread.join()\n"
        "time.sleep(600)\n"
    )
    arguments = ["--bundle", str(bundle().folder), "--ready-file", str(ready)]
    with (tmp_path / "log").open("wb") as log:
        parent = subprocess.Popen([sys.executable, "-c", parent_code, *arguments], stderr=log)
    try:
        until = time.monotonic() + 30
        while not ready.exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        pid = json.loads(ready.read_text())["pid"]
        time.sleep(1.2)
        os.kill(pid, 0)
    finally:
        parent.kill()
        parent.wait()
    until = time.monotonic() + 20
    while _alive(pid):
        assert time.monotonic() < until, "the orphan lives on"
        time.sleep(0.05)
    assert "its parent ended" in (tmp_path / "log").read_text()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
