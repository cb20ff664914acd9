"""The tests that prove an HTTP protocol; third parties subclass this in their own test suite.

They need ``protocol_class`` and a fixture ``plane``: a loaded plane (ready or not).
"""

import asyncio
import json
from typing import Any

from starlette.applications import Starlette

from modelyard.serving.plane import Plane
from modelyard.serving.protocols.base import Protocol


class ProtocolContract:
    """Whatever is sent, the answer is a code and, where it is an error, one JSON sentence."""

    protocol_class: type[Protocol]

    def test_no_two_routes_are_the_same(self, plane: Plane) -> None:
        routes = self.protocol_class().mount(plane)
        keys = [(route.path, method) for route in routes for method in route.methods]
        assert keys
        assert len(keys) == len(set(keys))

    def test_garbage_is_refused_in_one_json_sentence(self, plane: Plane) -> None:
        routes = self.protocol_class().mount(plane)
        app = Starlette(routes=routes)
        for route in routes:
            path = route.path
            for name, value in (
                ("{model}", plane.model),
                ("{version}", "999"),
                ("{number:int}", "999"),
            ):
                path = path.replace(name, value)
            for method in route.methods:
                for body in (b"", b"\x00\xff", b'{"inputs": [{}]}', b"[" * 5000):
                    code, answer = asyncio.run(_ask(app, method, path, body))
                    assert code < 500 or not plane.ready, f"{method} {path} -> {code}"
                    assert (
                        method == "HEAD"
                        or code < 400
                        or "ready" in json.loads(answer)
                        or "error" in json.loads(answer)
                    )
                    assert b"Traceback" not in answer


async def _ask(app: Starlette, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    """One request to an ASGI application, without a socket."""
    sent: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return events.pop(0) if events else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-length", str(len(body)).encode())],
        "client": None,
        "server": None,
        "scheme": "http",
    }
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)
