"""What a person is told when the service refuses."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from modelyard.inquiry import ask
from modelyard.spec.errors import DataError, DeploymentError


@pytest.fixture
def refusing() -> Iterator[tuple[str, list[tuple[int, bytes]]]]:
    """A server that answers with whatever the test puts into the list."""
    answers: list[tuple[int, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            code, body = answers.pop()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", answers
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_mistake_in_the_input_is_told_in_the_services_words(
    refusing: tuple[str, list[tuple[int, bytes]]],
) -> None:
    url, answers = refusing
    answers.append((400, b'{"error": "no column \'age\'"}'))
    with pytest.raises(DataError, match="no column 'age'"):
        ask(url, [{"weight": 1}])


@pytest.mark.parametrize("body", [b'{"error": "busy"}', b"busy", b'["busy"]'])
def test_a_fault_of_the_service_is_not_blamed_on_the_input(
    refusing: tuple[str, list[tuple[int, bytes]]], body: bytes
) -> None:
    url, answers = refusing
    answers.append((503, body))
    with pytest.raises(DeploymentError, match=r"answered 503.*busy"):
        ask(url, [b"\x89PNG"])


def test_nobody_there() -> None:
    with pytest.raises(DeploymentError, match="does not answer"):
        ask("http://127.0.0.1:9", [b"\x89PNG"])
