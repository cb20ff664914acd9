"""The service's one address: each request goes to the least busy ready replica, and again to another if that one dies."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from modelyard.deployment.gateway_metrics import CONTENT_TYPE, GatewayMetrics
from modelyard.deployment.metrics_merge import merge_metrics
from modelyard.deployment.process_table import GatewayPlan
from modelyard.deployment.upstream import Pool, ReplicaGone, Response, Upstream

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

HOP_BY_HOP = frozenset(
    name.encode()
    for name in [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    ]
)
_REBUILT = frozenset((b"content-length", b"expect", b"x-request-id"))
TRIES = 3
PATIENCE_SECONDS = 2.0
"""How long a request waits for a replica to become ready."""
DEADLINE_MARGIN_SECONDS = 1.0
"""A replica answers 504 at its own deadline; the gateway's comes a little later."""
METRICS_SECONDS = 1.0
DEPARTURE_SECONDS = 0.1
LEAST_BUFFER_BYTES = 256 * 1024 * 1024


class _Refused(Exception):
    def __init__(self, status: int, why: str, *, retry_after: int | None = None) -> None:
        super().__init__(why)
        headers = [(b"content-type", b"application/json")]
        if retry_after is not None:
            headers.append((b"retry-after", b"%d" % retry_after))
        self.response = Response(status, headers, msgspec.json.encode({"error": why}))


class _ClientGone(Exception):
    """The client closed the connection before it had sent its request."""


class _Departure:
    """Ends the request when its client leaves, so that nothing is inferred for nobody.

    It is looked for only in requests that take long, because looking costs a task.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._request = asyncio.current_task()
        self._looking: asyncio.Task[None] | None = None
        self._noticed = False

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(DEPARTURE_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._noticed = True
        if self._request is not None:
            self._request.cancel()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()
        if self._noticed and kind is asyncio.CancelledError and self._request is not None:
            self._request.uncancel()
            raise _ClientGone


class Gateway:
    """An ASGI application. ``pool`` and ``plan`` are replaced when a new version takes over."""

    def __init__(self, plan: GatewayPlan, metrics: GatewayMetrics) -> None:
        self.plan = plan
        self.pool = Pool()
        self.metrics = metrics
        self._in_flight = 0
        self._buffered = 0

    def switch(self, plan: GatewayPlan, pool: Pool) -> None:
        """Send every request from now on to ``pool``; those that wait for a replica look there too."""
        before, self.pool, self.plan = self.pool, pool, plan
        before.wake()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request_id = _header(scope, b"x-request-id") or uuid.uuid4().hex.encode()
        if scope["path"] == "/metrics":
            response = await self._metrics_page()
        elif scope["path"] == "/healthz":
            response = self._health()
        else:
            with self.metrics.timed() as outcome:
                try:
                    response = await self._answer(scope, receive, request_id)
                except _ClientGone:
                    outcome.code = 499
                    return
                outcome.code = response.status
        await _send(send, response, request_id, head_only=scope["method"] == "HEAD")

    async def _answer(self, scope: Scope, receive: Receive, request_id: bytes) -> Response:
        if self._in_flight >= self.plan.max_in_flight:
            return _Refused(503, "too many requests in flight", retry_after=1).response
        self._in_flight += 1
        body = _Body(self)
        try:
            async with asyncio.timeout(self.plan.timeout_seconds + DEADLINE_MARGIN_SECONDS):
                await body.read(scope, receive)
                with _Departure(receive):
                    return await self._forward(scope, body.parts, request_id)
        except _Refused as refused:
            return refused.response
        except TimeoutError:
            return _Refused(504, f"no answer within {self.plan.timeout_seconds:g} s").response
        finally:
            self._in_flight -= 1
            body.release()

    async def _forward(self, scope: Scope, body: list[bytes], request_id: bytes) -> Response:
        """Inference changes nothing in a replica, so a request whose replica died is sent again."""
        request = [_request_head(scope, sum(map(len, body)), request_id), *body]
        tried: list[Upstream] = []
        while True:
            upstream = await self._choose(tried)
            try:
                return await upstream.exchange(request, head_only=scope["method"] == "HEAD")
            except ReplicaGone as error:
                tried.append(upstream)
                if len(tried) >= TRIES:
                    raise _Refused(502, f"{TRIES} replicas in turn broke off: {error}") from error
                self.metrics.retries.inc()

    async def _choose(self, tried: list[Upstream]) -> Upstream:
        upstream = self.pool.choose(tried)
        give_up = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while upstream is None:
            seconds = give_up - asyncio.get_running_loop().time()
            if seconds <= 0:
                raise _Refused(503, "no replica is ready", retry_after=2)
            await self.pool.wait_for_change(seconds)
            upstream = self.pool.choose(tried)
        return upstream

    def count_buffered(self, size: int) -> None:
        """Keep account of the request bytes in memory. Raises the refusal beyond the limit."""
        self._buffered += size
        if size > 0 and self._buffered > max(LEAST_BUFFER_BYTES, 4 * self.plan.max_request_bytes):
            raise _Refused(503, "too many request bytes in flight", retry_after=1)

    def _health(self) -> Response:
        ready = len(self.pool.ready)
        body = msgspec.json.encode(
            {"status": "ok" if ready else "no replica is ready", "ready": ready}
        )
        return Response(200 if ready else 503, [(b"content-type", b"application/json")], body)

    async def _metrics_page(self) -> Response:
        upstreams = list(self.pool.ready)
        pages = await asyncio.gather(*(_metrics_of(upstream) for upstream in upstreams))
        texts = {
            str(up.index): page
            for up, page in zip(upstreams, pages, strict=True)
            if page is not None
        }
        # Parsing is plain Python and may take long with many replicas; requests must not wait for it.
        merged, unreadable = await asyncio.to_thread(merge_metrics, texts)
        for upstream, page in zip(upstreams, pages, strict=True):
            if page is None:
                self.metrics.leave_out(str(upstream.index), "no answer")
        for replica in unreadable:
            self.metrics.leave_out(replica, "unreadable")
        return Response(200, [(b"content-type", CONTENT_TYPE)], merged + self.metrics.page())


class _Body:
    """One request's body, whole in memory so that it can be sent again, and accounted for."""

    def __init__(self, gateway: Gateway) -> None:
        self.parts: list[bytes] = []
        self._gateway = gateway
        self._size = 0

    async def read(self, scope: Scope, receive: Receive) -> None:
        limit = self._gateway.plan.max_request_bytes
        too_large = _Refused(413, f"the request is larger than {limit} bytes")
        if int(_header(scope, b"content-length") or 0) > limit:
            raise too_large
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise _ClientGone
            part, more = message.get("body", b""), message.get("more_body", False)
            if self._size + len(part) > limit:
                raise too_large
            if part:
                self.parts.append(part)
                self._size += len(part)
                self._gateway.count_buffered(len(part))

    def release(self) -> None:
        self._gateway.count_buffered(-self._size)


async def _metrics_of(upstream: Upstream) -> str | None:
    request = b"GET /metrics HTTP/1.1\r\nhost: replica\r\naccept: text/plain\r\n\r\n"
    try:
        async with asyncio.timeout(METRICS_SECONDS):
            response = await upstream.exchange([request])
    except (ReplicaGone, TimeoutError):
        return None
    return response.body.decode(errors="replace") if response.status == 200 else None


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers (names in lower case) that concern both ends, not this one connection."""
    headers = list(headers)
    named = {
        word.strip().lower()
        for name, value in headers
        if name == b"connection"
        for word in value.split(b",")
    }
    return [pair for pair in headers if pair[0] not in HOP_BY_HOP and pair[0] not in named]


def _request_head(scope: Scope, body_size: int, request_id: bytes) -> bytes:
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    lines = [b"%b %b HTTP/1.1" % (scope["method"].encode("latin-1"), target)]
    lines += [b"%b: %b" % pair for pair in end_to_end(scope["headers"]) if pair[0] not in _REBUILT]
    lines.append(b"x-request-id: %b" % request_id)
    if body_size or scope["method"] not in ("GET", "HEAD"):
        lines.append(b"content-length: %d" % body_size)
    return b"\r\n".join([*lines, b"", b""])


async def _send(send: Send, response: Response, request_id: bytes, *, head_only: bool) -> None:
    headers = [pair for pair in end_to_end(response.headers) if pair[0] != b"x-request-id"]
    headers.append((b"x-request-id", request_id))
    if not head_only:
        headers = [pair for pair in headers if pair[0] != b"content-length"]
        headers.append((b"content-length", b"%d" % len(response.body)))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head_only else response.body})
