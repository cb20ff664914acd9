"""Serves the gateway at one address until it is told to stop."""

import asyncio
import contextlib
from collections.abc import Iterator

import uvicorn

from modelyard.deployment.gateway import Gateway
from modelyard.deployment.ports import listen_on

_KEEP_ALIVE_SECONDS = 75


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The supervisor has its own handlers: uvicorn's would end the process with the signal."""
        yield


class Listener:
    """One address that is answered by ``gateway``."""

    def __init__(self, gateway: Gateway, host: str, port: int) -> None:
        self._gateway = gateway
        self.host, self.port = host, port
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.url = ""

    async def start(self, drain_seconds: float) -> None:
        """Take the address and answer on it. Raises DeploymentError where it cannot be had."""
        sock = listen_on(self.host, self.port)
        port = sock.getsockname()[1]
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104
        self.url = f"http://{host}:{port}"
        config = uvicorn.Config(
            self._gateway,
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(drain_seconds)),
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[sock]))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Accept nothing new, finish what is in flight."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await asyncio.wait({self._task})
