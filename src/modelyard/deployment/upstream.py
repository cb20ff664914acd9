"""The gateway's side towards the replicas: kept-alive connections, and which replica is next."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

import httptools


class ReplicaGone(ConnectionError):
    """A replica's connection failed before its whole response was received."""


@dataclass(frozen=True, slots=True)
class Response:
    """A whole HTTP response."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class _Connection(asyncio.Protocol):
    """One connection, one exchange at a time; httptools calls the ``on_`` methods."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Response] | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._head_only = False
        self.answered_something = False
        self.reusable = True

    async def exchange(self, request: list[bytes], *, head_only: bool) -> Response:
        if self._transport is None or not self.reusable:
            raise ReplicaGone("the connection was closed")
        self._head_only = head_only
        self.answered_something = False
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.writelines(request)
        return await self._answer

    def close(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "writelines")
        self._transport = transport  # type: ignore[assignment]  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        self.answered_something = True
        if self._answer is None:
            self.close()  # bytes that nobody asked for
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"its response is not HTTP: {error}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        self._fail(str(exc) if exc else "it closed the connection")

    def _fail(self, why: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ReplicaGone(why))
        self._answer = None

    def on_message_begin(self) -> None:
        self._headers, self._body = [], []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._head_only and self._parser.get_status_code() >= 200:
            # The parser would wait for a body that never comes, so this connection ends here.
            self.reusable = False
            self._finish()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            return  # 100 Continue and the like: the real response follows
        self.reusable = self.reusable and self._parser.should_keep_alive()
        self._finish()

    def _finish(self) -> None:
        if self._answer is not None and not self._answer.done():
            status = self._parser.get_status_code()
            self._answer.set_result(Response(status, self._headers, b"".join(self._body)))
        self._answer = None


class Upstream:
    """One ready replica: its address, its idle connections, how many requests it has in flight."""

    def __init__(self, host: str, port: int, index: int) -> None:
        self.host, self.port, self.index = host, port, index
        self.in_flight = 0
        self.suspect = False
        """It missed its last probe; others are preferred."""
        self._idle: list[_Connection] = []
        self._closed = False

    async def exchange(self, request: list[bytes], *, head_only: bool = False) -> Response:
        """Send one request and return the whole response. Raises ReplicaGone."""
        self.in_flight += 1
        try:
            while True:
                connection, fresh = await self._connect()
                try:
                    response = await connection.exchange(request, head_only=head_only)
                except ReplicaGone:
                    # A kept connection may have been closed by the replica just now, for idleness.
                    if fresh or connection.answered_something:
                        raise
                    continue
                except BaseException:
                    connection.close()
                    raise
                self._keep(connection)
                return response
        finally:
            self.in_flight -= 1

    async def _connect(self) -> tuple[_Connection, bool]:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection, False
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, self.host, self.port
            )
        except OSError as error:
            raise ReplicaGone(f"it cannot be reached: {error}") from error
        return connection, True

    def _keep(self, connection: _Connection) -> None:
        if connection.reusable and not self._closed:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close idle connections; those in use end with their exchange."""
        self._closed = True
        for connection in self._idle:
            connection.close()
        self._idle.clear()


class Pool:
    """The ready replicas of one version, least busy first."""

    def __init__(self) -> None:
        self.ready: list[Upstream] = []
        self._turn = 0
        self._changed = asyncio.Event()

    def add(self, upstream: Upstream) -> None:
        self.ready.append(upstream)
        self.wake()

    def remove(self, upstream: Upstream) -> None:
        if upstream in self.ready:
            self.ready.remove(upstream)
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits for a replica look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_change(self, seconds: float) -> None:
        changed = self._changed
        try:
            await asyncio.wait_for(changed.wait(), max(0.0, seconds))
        except TimeoutError:
            return

    def choose(self, avoid: Collection[Upstream] = ()) -> Upstream | None:
        """The replica with the fewest requests in flight, in turn where several are equal."""
        candidates = [upstream for upstream in self.ready if upstream not in avoid]
        candidates = [upstream for upstream in candidates if not upstream.suspect] or candidates
        if not candidates:
            return None
        self._turn += 1
        turn = self._turn % len(candidates)
        rotated = candidates[turn:] + candidates[:turn]
        return min(rotated, key=lambda upstream: upstream.in_flight)
