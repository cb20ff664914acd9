"""One HTTP exchange: a bounded body in, an answer out, every error a code and a JSON sentence."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from modelyard.serving.batcher import DeadlineExceeded, Overloaded, retry_after_seconds
from modelyard.serving.natural import WrongKind
from modelyard.spec.errors import NotFoundError, RequestError, YardError

if TYPE_CHECKING:
    from modelyard.serving.plane import Plane

_log = logging.getLogger("modelyard.serving")
_WATCH_AFTER = 0.05
"""Seconds until it is worth a task to notice that the client has gone."""
_DISCARD_SECONDS = 1.0
_LEAST_BODY_SECONDS = 5.0
_BODY_READ = "modelyard.body_read"
_GONE = 499
"""nginx's code for a client that did not wait; nobody receives it, it is only counted."""


class TooLarge(RequestError):
    """The body is larger than this service takes."""


class SlowBody(RequestError):
    """The body did not come in time."""


class NotReady(YardError):
    """The service cannot answer yet, or not any more."""


_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (TooLarge, 413),
    (SlowBody, 408),
    (WrongKind, 415),
    (RequestError, 400),
    (NotFoundError, 404),
    (Overloaded, 503),
    (NotReady, 503),
    (DeadlineExceeded, 504),
    (ClientDisconnect, _GONE),
)

Handler = Callable[[Request], Awaitable[Response]]


def json_response(content: Any, code: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), code, headers, "application/json")


def error_response(error: BaseException) -> Response:
    """What a client is told; only errors meant for people are told in full."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), 500)
    headers = {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(retry_after_seconds(error))
    elif isinstance(error, NotReady):
        headers["Retry-After"] = "1"
    elif isinstance(error, (TooLarge, SlowBody)):
        headers["Connection"] = "close"  # the rest of the body is not read
    if isinstance(error, YardError):
        text = f"{error.what} ({error.mend})" if error.mend else error.what
    else:
        text = "the service failed; its log says why"
    return json_response({"error": text}, code, headers)


class Room:
    """How many requests, and how many bytes of bodies, one process holds at a time."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0

    def refusal(self) -> str:
        """Why there is no room for the newest one; empty where there is."""
        if self.requests > self._max_requests:
            return "inflight"
        return "bytes" if self.bytes > self._max_bytes and self.requests > 1 else ""


def room_for(plane: "Plane") -> Room:
    """A thousand requests, or eight of the largest."""
    return Room(1024, max(8 * plane.max_request_bytes, 64 * 1024 * 1024))


def counted(plane: "Plane", protocol: str, handler: Handler, room: Room) -> Handler:
    """Wrap an inference endpoint: refuse when not ready or too busy, map errors to codes, count."""

    async def answer(request: Request) -> Response:
        started = time.monotonic()
        size = _body_size(request, plane.max_request_bytes)
        room.requests += 1
        room.bytes += size
        plane.metrics.inflight.inc()
        try:
            _admit(plane, room)
            response = await unless_gone(request, handler(request))
        except Exception as error:  # noqa: BLE001 - the wire is where every error becomes an answer
            if not isinstance(error, (YardError, ClientDisconnect)):
                _log.exception("a request failed")
            response = error_response(error)
        finally:
            room.requests -= 1
            room.bytes -= size
            plane.metrics.inflight.dec()
        plane.metrics.request(protocol, response.status_code, time.monotonic() - started)
        return response

    return answer


def _admit(plane: "Plane", room: Room) -> None:
    if not plane.ready:
        raise NotReady("the service is not ready", "ask GET /v2/health/ready until it says 200")
    if reason := room.refusal():
        plane.metrics.shed(reason)
        raise Overloaded(
            f"the service is overloaded: {room.requests} requests are in flight",
            reason=reason,
            retry_after=1.0,
        )


def _body_size(request: Request, limit: int) -> int:
    """The most bytes that the body can take here; one of unknown length is counted as the largest."""
    declared = request.headers.get("content-length", "")
    return min(int(declared), limit) if declared.isdigit() else limit


def body_seconds(plane: "Plane") -> float:
    """How long a body may take to come: as long as an answer, but never so short that a tight limit
    on inference turns away clients on slow lines, or that a busy server blames them for its own delay."""
    return max(plane.timeout_seconds, _LEAST_BODY_SECONDS)


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """The whole body. Raises TooLarge as soon as it is, SlowBody, ClientDisconnect."""
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding not in ("", "identity"):
        raise WrongKind(f"Content-Encoding {encoding!r} is not supported", "send the body as it is")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        if "expect" not in request.headers:  # such a client waits for our word before it sends
            await _discard(request)
        raise _too_large(limit)
    chunks, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    break
                chunks.append(chunk)
    except TimeoutError:
        raise SlowBody(f"the body did not come within {seconds:.3g} s") from None
    if size > limit:
        await _discard(request)
        raise _too_large(limit)
    request.scope[_BODY_READ] = True
    return b"".join(chunks)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"the body is larger than {limit} bytes", "send fewer rows, or raise serve.max_request_mb"
    )


async def _discard(request: Request) -> None:
    """Take what is under way for a moment: a client that is cut off while sending misses the answer."""
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            async for _ in request.stream():
                pass
    except (TimeoutError, RuntimeError):
        return


async def unless_gone(request: Request, work: Awaitable[Response]) -> Response:
    """Await ``work``, but give it up (raising ClientDisconnect) when the client goes away.

    The watch starts only after a moment and only when the body was read, because most answers are
    out before it would be worth a task.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    watcher: asyncio.Task[None] | None = None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while _BODY_READ not in request.scope:
            await asyncio.sleep(_WATCH_AFTER)
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        if task is not None:
            task.cancel()

    def begin() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch())

    timer = loop.call_later(_WATCH_AFTER, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if not gone or task is None:
            raise
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()


async def off_loop(size: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run ``work`` here, or in a thread where it handles more than a megabyte, so that probes go on."""
    if size <= 1 << 20:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)
