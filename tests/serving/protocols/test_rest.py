"""The REST protocol, against real servers over real sockets."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from modelyard.serving.plane import Plane, load
from modelyard.serving.protocols.contract import ProtocolContract
from modelyard.serving.protocols.rest import Rest

Served = Callable[[str], Any]


class TestContract(ProtocolContract):
    protocol_class = Rest

    @pytest.fixture
    def plane(self, bundle: Callable[..., Any]) -> Iterator[Plane]:
        plane = load(bundle("table").folder)
        yield plane
        plane.close()


# --- the Open Inference Protocol, judged by Triton's own client --------------------------------


@pytest.fixture
def client(served: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served("tensor").address) as client:
        yield client


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_triton_client_gets_right_answers(
    served: Served, client: triton.InferenceServerClient, binary_in: bool, binary_out: bool | None
) -> None:
    values = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    tensor = triton.InferInput("input", [5, 4], "FP32")
    tensor.set_data_from_numpy(values, binary_data=binary_in)
    wanted = None
    if binary_out is not None:
        wanted = [triton.InferRequestedOutput("output", binary_data=binary_out)]
    answer = client.infer("small", [tensor], outputs=wanted, request_id="r-1")
    got = answer.as_numpy("output")
    assert np.abs(got - served("tensor").made.expected(values)).max() < 1e-5
    about = answer.get_response()
    assert (about["id"], about["model_name"], about["model_version"]) == ("r-1", "small", "3")


def test_triton_client_sees_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("small")
    assert client.is_model_ready("small", "3")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("small", "3")
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}]
    assert metadata["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, 3]}]
    assert metadata["versions"] == ["3"]


def test_triton_client_is_told_what_is_wrong(client: triton.InferenceServerClient) -> None:
    tensor = triton.InferInput("imput", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
    with pytest.raises(triton.InferenceServerException, match="did you mean 'input'"):
        client.infer("small", [tensor])


GOOD: dict[str, Any] = {
    "inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]
}


@pytest.mark.parametrize("path", ["/v2/models/small/infer", "/v2/models/small/versions/3/infer"])
def test_json_tensors_flat_or_nested(served: Served, path: str) -> None:
    server = served("tensor")
    nested = {"inputs": [GOOD["inputs"][0] | {"data": [[1, 2, 3, 4]]}], "id": "abc"}
    flat, deep = (httpx.post(server.url + path, json=body).json() for body in (GOOD, nested))
    expected = server.made.expected(np.array([[1, 2, 3, 4]], np.float32))
    for answer in (flat, deep):
        [output] = answer["outputs"]
        assert (output["name"], output["datatype"], output["shape"]) == ("output", "FP32", [1, 3])
        assert np.abs(np.array(output["data"]) - expected.ravel()).max() < 1e-5
    assert deep["id"] == "abc"
    assert "id" not in flat


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "words"),
    [
        ("POST", "/v2/models/smal/infer", GOOD, 404, "did you mean 'small'"),
        ("POST", "/v2/models/small/versions/9/infer", GOOD, 404, "serves version 3"),
        ("GET", "/v2/models/small/infer", None, 405, "allowed: POST"),
        ("GET", "/v2/model/small", None, 404, "nothing at /v2/model/small"),
        ("GET", "/v2/models/other/ready", None, 404, "no model 'other'"),
        ("POST", "/v2/models/small/infer", {}, 400, "inputs"),
        ("POST", "/v2/models/small/infer", b"{", 400, "cannot be read"),
        ("POST", "/v2/models/small/infer", b"", 400, "cannot be read"),
        ("POST", "/v2/models/small/infer", b"x" * 1_000_001, 413, "larger than 1000000 bytes"),
        ("POST", "/predict", b"no json", 415, "takes JSON"),
        ("POST", "/predict", b"[1, 2]", 400, "shape [2]"),
        ("POST", "/predict", b"", 400, "empty"),
    ],
)
def test_a_wrong_request_gets_its_code_and_one_sentence(
    served: Served, method: str, path: str, body: Any, code: int, words: str
) -> None:
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    answer = httpx.request(method, served("tensor").url + path, content=content)
    assert answer.status_code == code, answer.text
    assert words in answer.json()["error"]
    assert "Traceback" not in answer.text


def test_a_body_without_a_length_is_bounded_too(served: Served) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 10_000

    answer = httpx.post(served("tensor").url + "/v2/models/small/infer", content=endless())
    assert answer.status_code == 413


def test_an_encoded_body_is_refused_as_such(served: Served) -> None:
    answer = httpx.post(
        served("tensor").url + "/predict", content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"}
    )
    assert answer.status_code == 415
    assert "gzip" in answer.json()["error"]


def test_every_answer_says_which_model_gave_it(served: Served) -> None:
    for path in ("/v2", "/nope", "/v2/models/small"):
        headers = httpx.get(served("tensor").url + path).headers
        assert headers["X-Modelyard-Version"] == "3"
        assert headers["X-Modelyard-Digest"] == "sha256:abc"
        assert "server" not in headers


def test_sixteen_clients_each_get_their_own_answer(served: Served) -> None:
    """Every value is another one: an answer handed to the wrong client would show."""
    server = served("tensor")

    def ask(number: int) -> float:
        worst = 0.0
        with httpx.Client() as http:
            for turn in range(40):
                rows = 1 + (number + turn) % 3
                values = (number * 1000 + turn + np.arange(rows * 4, dtype=np.float32)).reshape(
                    -1, 4
                )
                tensor = {"name": "input", "shape": [rows, 4], "datatype": "FP32"}
                body = {"inputs": [tensor | {"data": values.tolist()}]}
                [output] = http.post(server.url + "/v2/models/small/infer", json=body).json()[
                    "outputs"
                ]
                expected = server.made.expected(values)
                error = np.abs(np.array(output["data"]).reshape(-1, 3) - expected)
                worst = max(worst, float((error / np.maximum(1, np.abs(expected))).max()))
        return worst

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(ask, range(16))) < 1e-4


# --- plain input ---------------------------------------------------------------------------------


def curl(*arguments: str) -> Any:
    done = subprocess.run(["curl", "-sS", *arguments], capture_output=True, timeout=30, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("level", [5, 250])
def test_curl_sends_a_picture_as_it_is(served: Served, tmp_path: Path, level: int) -> None:
    from PIL import Image

    url = served("image").url + "/predict"
    Image.new("RGB", (40, 30), (level,) * 3).save(tmp_path / "x.png")
    Image.new("RGB", (40, 30), (level,) * 3).save(tmp_path / "x.jpg")
    file = str(tmp_path / "x.png")
    label = "dark" if level < 128 else "light"
    for arguments in (
        ["--data-binary", f"@{file}"],
        ["-F", f"file=@{file}"],
        ["-T", str(tmp_path / "x.jpg"), "-X", "POST"],
    ):
        answer = curl(*arguments, url)
        assert (answer["model"], answer["version"], answer["digest"]) == ("small", 3, "sha256:abc")
        [prediction] = answer["predictions"]
        assert prediction["label"] == label
        assert set(prediction["probabilities"]) == {"dark", "light"}
        assert prediction["probability"] == max(prediction["probabilities"].values())


def test_many_pictures_in_one_form_are_answered_in_order(served: Served) -> None:
    import io

    from PIL import Image

    def picture(level: int) -> bytes:
        file = io.BytesIO()
        Image.new("L", (300, 300), level).save(file, "PNG")
        return file.getvalue()

    levels = [250, 3, 200, 40] * 20
    files = [("file", (f"{i}.png", picture(level))) for i, level in enumerate(levels)]
    answer = httpx.post(served("image").url + "/predict", files=files).json()
    labels = [prediction["label"] for prediction in answer["predictions"]]
    assert labels == ["dark" if level < 128 else "light" for level in levels]


@pytest.mark.parametrize(
    ("body", "kind", "code", "words"),
    [
        (b"\x89PNG\r\n\x1a\n cut off", "image/png", 400, "not a readable image"),
        (b"\xff\xd8\xff nonsense", "", 400, "not a readable image"),
        (b'{"row": {}}', "application/json", 415, "takes image files"),
    ],
)
def test_a_broken_picture_is_explained(
    served: Served, body: bytes, kind: str, code: int, words: str
) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = httpx.post(served("image").url + "/predict", content=body, headers=headers)
    assert answer.status_code == code
    assert words in answer.json()["error"]


def test_rows_as_json_and_as_csv_get_the_same_answers(served: Served) -> None:
    url = served("table").url + "/predict"
    rows = [
        {"age": 30, "color": "red", "smoker": True},
        {"age": None, "color": "blue", "smoker": False},
    ]
    csv = b"age,color,smoker\n30,red,yes\n,blue,no\n"
    bodies = [json.dumps({"rows": rows}).encode(), json.dumps(rows).encode(), csv]
    answers = [httpx.post(url, content=body).json()["predictions"] for body in bodies]
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0]) == 2
    assert curl("-d", json.dumps({"row": rows[1]}), url)["predictions"] == answers[0][1:]
    assert curl("--json", json.dumps(rows[0]), url)["predictions"] == answers[0][:1]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"age": "old", "color": "red", "smoker": True}, "'age'"),
        ({"agee": 1, "color": "red", "smoker": True}, "age"),
        ({"age": 1, "color": "red", "smoker": "maybe"}, "'smoker'"),
    ],
)
def test_a_wrong_row_names_the_column(served: Served, row: dict[str, Any], words: str) -> None:
    answer = httpx.post(served("table").url + "/predict", json={"row": row})
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_a_regression_answers_with_its_value(served: Served) -> None:
    answer = httpx.post(served("regression").url + "/predict", json={"row": [1, 2, 3, 4]}).json()
    expected = served("regression").made.expected(np.array([[1, 2, 3, 4]], np.float32))
    assert answer["predictions"] == [{"value": pytest.approx(float(expected[0, 0]), rel=1e-5)}]


# --- for people and for Prometheus ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tensor", "image", "table"])
def test_the_pages_need_nothing_from_elsewhere(served: Served, kind: str) -> None:
    import base64
    import hashlib

    for path in ("/", "/docs"):
        page = httpx.get(served(kind).url + path)
        assert page.status_code == 200
        assert not re.search(r"(src|href)=['\"]?(https?:)?//", page.text)
        policy = page.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        # What the policy allows by its hash is what the page holds.
        for block in re.findall(r"<script>(.*?)</script>|<style>(.*?)</style>", page.text, re.S):
            text = next(part for part in block if part)
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy


def test_the_playgrounds_examples_are_the_bundles_samples(served: Served) -> None:
    picture = httpx.get(served("image").url + "/samples/0")
    assert picture.headers["content-type"] == "image/png"
    answer = httpx.post(served("image").url + "/predict", content=picture.content)
    assert answer.json()["predictions"][0]["label"] == "dark"
    assert httpx.get(served("table").url + "/samples/1").json()["color"] == "blue"
    assert httpx.get(served("table").url + "/samples/99").status_code == 404


@pytest.mark.parametrize("kind", ["tensor", "image", "table", "regression"])
def test_the_openapi_document_describes_what_is_there(served: Served, kind: str) -> None:
    server = served(kind)
    document = httpx.get(server.url + "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    names = re.findall(r"#/components/schemas/(\w+)", json.dumps(document))
    assert set(names) == set(document["components"]["schemas"])
    for path, methods in document["paths"].items():
        for method in methods:
            assert httpx.request(method, server.url + path).status_code not in (404, 405)
    if kind == "table":
        row = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
        assert httpx.post(server.url + "/predict", json=row["example"]).status_code == 200


def test_metrics_count_the_requests(served: Served) -> None:
    server = served("image")

    def count(name: str) -> float:
        text = httpx.get(server.url + "/metrics").text
        return sum(float(x) for x in re.findall(rf"^{name} (.+)$", text, re.M))

    series = r'modelyard_predictions_total\{label="dark",model="small",version="3"\}'
    requests = r'modelyard_request_duration_seconds_count\{code="200",.*protocol="predict",.*\}'
    before = count(series), count(requests)
    black = httpx.get(server.url + "/samples/0").content
    httpx.post(server.url + "/predict", content=black).raise_for_status()
    assert (count(series), count(requests)) == (before[0] + 1, before[1] + 1)
