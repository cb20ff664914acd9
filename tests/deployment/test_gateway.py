"""The gateway as a client sees it, in front of real processes."""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from modelyard.deployment.gateway import HOP_BY_HOP, end_to_end
from modelyard.deployment.targets.local import Local
from modelyard.spec.records import Deployment, Service

STAND_IN = Path(__file__).with_name("stand_in.py")
LIMIT = 1_000_000


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One deployment with two replicas for all tests here."""
    folder = tmp_path_factory.mktemp("gateway")
    target = Local(replica_command=(str(STAND_IN),), cores=2)
    service = Service(
        name="toy",
        model="toy",
        version=1,
        digest="sha256:1",
        bundle_folder=str(folder),
        port=0,
        max_request_bytes=LIMIT,
        timeout_seconds=2.0,
    )
    plan = target.plan(service)
    plan["gateway"]["max_in_flight"] = 8
    yield target.apply(folder / "deployment", plan)
    target.remove(folder / "deployment")


@pytest.fixture
def ask(up: Deployment, client: Any) -> Callable[..., tuple[int, dict[str, str], bytes]]:
    return client(up.url).ask  # type: ignore[no-any-return]


def test_replicas_take_turns(ask: Any) -> None:
    answers = [json.loads(ask("POST", "/double", b'{"x": 21}')[2]) for _ in range(10)]
    assert {answer["answer"] for answer in answers} == {42}
    assert [answer["replica"] for answer in answers].count(0) == 5


def test_a_request_arrives_as_it_was_sent_but_for_what_concerns_one_connection(ask: Any) -> None:
    status, headers, body = ask(
        "POST",
        "/echo/%C3%A4?a=1&b=%20",
        b"x" * 1000,
        Connection="keep-alive, X-Private",
        X_Private="of this connection",
        X_Request_Id="mine-1",
        Inference_Header_Content_Length="7",
    )
    seen = json.loads(body)
    assert status == 200
    assert (seen["path"], seen["size"]) == ("/echo/%C3%A4?a=1&b=%20", 1000)
    assert seen["headers"]["x-request-id"] == headers["x-request-id"] == "mine-1"
    assert seen["headers"]["inference-header-content-length"] == "7"
    assert "x-private" not in seen["headers"]
    assert headers["x-digest"] == "sha256:1"


def test_a_request_without_an_id_gets_one(ask: Any) -> None:
    _, first, body = ask("POST", "/echo", b"")
    _, second, _ = ask("POST", "/echo", b"")
    assert json.loads(body)["headers"]["x-request-id"] == first["x-request-id"]
    assert first["x-request-id"] != second["x-request-id"]


def test_head_has_no_body_and_leaves_the_connection_usable(ask: Any) -> None:
    status, headers, body = ask("HEAD", "/anything")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 0
    assert ask("GET", "/anything")[0] == 200


def test_a_chunked_request_is_taken(up: Deployment) -> None:
    connection = http.client.HTTPConnection(urlsplit(up.url).netloc, timeout=10)
    connection.request("POST", "/echo", iter([b"abc", b"defg"]), encode_chunked=True)
    assert json.loads(connection.getresponse().read())["size"] == 7
    connection.close()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_request_beyond_the_limit_is_refused(up: Deployment, ask: Any, chunked: bool) -> None:
    connection = http.client.HTTPConnection(urlsplit(up.url).netloc, timeout=10)
    body = iter([b"x" * 600_000] * 2) if chunked else b"x" * (LIMIT + 1)
    connection.request("POST", "/echo", body, encode_chunked=chunked)
    response = connection.getresponse()
    assert response.status == 413
    assert f"larger than {LIMIT} bytes" in json.loads(response.read())["error"]
    connection.close()
    status, _, echoed = ask("POST", "/echo", b"x" * LIMIT)
    assert (status, json.loads(echoed)["size"]) == (200, LIMIT)


def test_a_request_that_takes_too_long_is_given_up(ask: Any) -> None:
    status, _, body = ask("GET", "/slow?seconds=4")
    assert status == 504
    assert "within 2 s" in json.loads(body)["error"]


def test_a_client_that_sends_nothing_more_does_not_wait_for_ever(up: Deployment) -> None:
    host, port = urlsplit(up.url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
        assert connection.recv(1000).startswith(b"HTTP/1.1 504")


def test_a_client_that_leaves_frees_its_place_at_once(up: Deployment, ask: Any) -> None:
    left = b'modelyard_gateway_requests_total{code="499"} 1.0'
    assert left not in ask("GET", "/metrics")[2]
    host, port = urlsplit(up.url).netloc.split(":")
    started = time.monotonic()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /slow?seconds=1.9 HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.3)
    while left not in ask("GET", "/metrics")[2]:
        assert time.monotonic() - started < 1.8
        time.sleep(0.02)


def test_a_response_that_breaks_off_is_never_passed_on_in_part(ask: Any) -> None:
    status, _, body = ask("GET", "/half")
    assert status in (502, 503)
    assert b"only this" not in body


def test_more_requests_than_it_holds_are_refused_at_once(up: Deployment, load: Any) -> None:
    def slow(client: Any, number: int) -> tuple[int, str]:
        status, headers, _ = client.ask("GET", "/slow?seconds=1")
        return status, headers.get("retry-after", "")

    with load(up.url, slow, clients=12) as running:
        running.wait_for_more(12)
    assert not running.errors
    assert set(running.answers) == {(200, ""), (503, "1")}


def test_ambiguous_lengths_are_refused(up: Deployment) -> None:
    host, port = urlsplit(up.url).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")


def test_metrics_are_those_of_all_replicas_and_its_own(ask: Any) -> None:
    for _ in range(4):
        ask("POST", "/double", b'{"x": 1}')
    status, headers, body = ask("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    text = body.decode()
    assert text.count("# TYPE modelyard_toy_total counter") == 1
    families = {family.name: family for family in text_string_to_metric_families(text)}
    toy = families["modelyard_toy"].samples
    assert {sample.labels["replica"] for sample in toy} == {"0", "1"}
    assert sum(sample.value for sample in toy) >= 4
    codes = {sample.labels["code"] for sample in families["modelyard_gateway_requests"].samples}
    assert "200" in codes
    assert families["modelyard_replicas_ready"].samples[0].value == 2
    restarts = families["modelyard_replica_restarts"].samples
    assert {sample.name for sample in restarts} == {"modelyard_replica_restarts_total"}
    assert "modelyard_gateway_request_duration_seconds" in families
    assert "modelyard_gateway_retries" in families


def test_a_page_that_is_left_out_is_counted(ask: Any) -> None:
    replica = json.loads(ask("POST", "/spoil", b"")[2])["replica"]
    name = b"modelyard_gateway_metrics_pages_left_out_total"
    line = b'%b{reason="unreadable",replica="%d"} 1.0' % (name, replica)
    spoilt, whole = (ask("GET", "/metrics")[2] for _ in range(2))
    toy = b'modelyard_toy_total{model="toy",replica="%d"}' % replica
    assert line in spoilt and toy not in spoilt
    assert line in whole and toy in whole


def test_its_own_health(ask: Any) -> None:
    status, _, body = ask("GET", "/healthz")
    assert (status, json.loads(body)) == (200, {"status": "ok", "ready": 2})


def test_without_a_ready_replica_it_says_so_and_when_to_come_back(
    nothing_left: Path, target: Local, service: Service, folder: Path, client: Any
) -> None:
    up = target.apply(folder, target.plan(msgspec.structs.replace(service, replicas=1)))
    (Path(service.bundle_folder) / "behaviour.json").write_text('{"start_seconds": 60}')
    with pytest.raises(http.client.RemoteDisconnected):
        _ask_replica(up.replicas[0].address, "/die")
    asked = client(up.url)
    status, headers, body = asked.ask("GET", "/anything")
    assert (status, headers["retry-after"]) == (503, "2")
    assert "no replica is ready" in json.loads(body)["error"]
    assert asked.ask("GET", "/healthz")[0] == 503


def test_a_single_replica_that_dies_in_the_middle_is_waited_for(
    target: Local, service: Service, folder: Path, load: Any, ask_double: Any
) -> None:
    up = target.apply(folder, target.plan(msgspec.structs.replace(service, replicas=1)))
    with load(up.url, ask_double, clients=2) as running:
        running.wait_for_more(50)
        with pytest.raises(http.client.RemoteDisconnected):
            _ask_replica(up.replicas[0].address, "/die")
        running.wait_for_more(50)
    assert not running.errors


def _ask_replica(address: str, path: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
    try:
        connection.request("GET", path)
        connection.getresponse()
    finally:
        connection.close()


names = st.sampled_from([b"connection", b"te", b"x-a", b"x-b", b"upgrade", b"accept"])
values = st.lists(st.sampled_from([b"close", b"x-a", b" X-B ", b"gzip"]), min_size=1)


@given(st.lists(st.tuples(names, values.map(b",".join))))
def test_headers_of_one_connection_never_pass(headers: list[tuple[bytes, bytes]]) -> None:
    kept = end_to_end(headers)
    assert not HOP_BY_HOP & {name for name, _ in kept}
    words = [w.strip().lower() for n, v in headers if n == b"connection" for w in v.split(b",")]
    assert not set(words) & {name for name, _ in kept}
    assert [pair for pair in headers if pair in kept] == kept
