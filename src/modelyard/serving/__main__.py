"""``python -m modelyard.serving``: one replica, from an unpacked bundle to a drained exit.

::

    bind the port -> load the bundle -> answer probes -> golden check -> write the ready file
    SIGTERM or SIGINT: not ready, accept nothing new, finish what is in flight, exit 0

What happens is told on stderr, one JSON line an event. An error is one line and exit code 1.
"""

import argparse
import asyncio
import contextlib
import functools
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from modelyard.serving.app import create_app
from modelyard.serving.lifeline import watch_parent
from modelyard.serving.plane import Plane, load
from modelyard.spec.errors import ServingError, YardError, from_os_error
from modelyard.store.files import write_atomic

_MAX_CONNECTIONS = 4096


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # Junk on the port is the sender's problem: it must not fill the log.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    # The supervisor's signal may come before the loop runs: then there is nothing to drain.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve(options))
    except KeyboardInterrupt:
        return 0
    except YardError as error:
        _say("failed", options, error=error.what, mend=error.mend)
        return 1
    except OSError as error:
        problem = from_os_error(error)
        _say("failed", options, error=problem.what, mend=problem.mend)
        return 1


async def _serve(options: argparse.Namespace) -> int:
    listener = _bind(options.host, options.port)
    port = listener.getsockname()[1]
    _say("starting", options, port=port, pid=os.getpid())
    loop = asyncio.get_running_loop()
    plane = await loop.run_in_executor(None, functools.partial(_load, options))
    server = _server(plane, options)
    stop = functools.partial(_stop, server, plane, options)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, signal.Signals(number).name)
    if options.parent_pid:
        watch_parent(options.parent_pid, functools.partial(stop, "its parent ended"))
    serving = loop.create_task(server.serve(sockets=[listener]))
    try:
        await _become_ready(plane, options, port, serving)
        await serving
    finally:
        server.should_exit = True
        await serving
        plane.close()
    _say("stopped", options)
    return 0


def _load(options: argparse.Namespace) -> Plane:
    return load(
        options.bundle,
        model=options.model,
        version=options.version,
        digest=options.digest,
        threads=options.threads,
        max_batch=options.max_batch,
        max_request_bytes=options.max_request_bytes,
        timeout_seconds=options.timeout_seconds,
    )


async def _become_ready(
    plane: Plane, options: argparse.Namespace, port: int, serving: "asyncio.Task[None]"
) -> None:
    """Prove the answers, then tell whoever waits. Probes are answered meanwhile; a stop ends it."""
    started = time.monotonic()
    proving = asyncio.ensure_future(plane.prove())
    await asyncio.wait({proving, serving}, return_when=asyncio.FIRST_COMPLETED)
    if not proving.done():
        proving.cancel()
        return
    proving.result()
    # Everything loaded so far stays: the collector need not look at it again at every request.
    gc.collect()
    gc.freeze()
    if options.ready_file:
        about = {"pid": os.getpid(), "host": options.host, "port": port}
        about |= {"version": options.version, "digest": options.digest}
        write_atomic(options.ready_file, json.dumps(about).encode() + b"\n")
    _say("ready", options, port=port, check_seconds=round(time.monotonic() - started, 4))


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process has its own handlers: uvicorn's would end it with the signal, not with 0."""
        yield


def _server(plane: Plane, options: argparse.Namespace) -> _Server:
    headers = [
        ("X-Modelyard-Version", str(options.version)),
        ("X-Modelyard-Digest", options.digest or "unknown"),
    ]
    config = uvicorn.Config(
        create_app(plane, tuple(options.protocols.split(","))),
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        headers=headers,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=options.drain_seconds,
    )
    return _Server(config)


def _stop(server: _Server, plane: Plane, options: argparse.Namespace, reason: str) -> None:
    if not server.should_exit:
        _say("draining", options, reason=reason)
    plane.drain()
    server.should_exit = True


def _bind(host: str, port: int) -> socket.socket:
    """A bound socket; raises ServingError that says who could be asked."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except socket.gaierror as error:
        raise ServingError(
            f"{host!r} is no address of this machine: {error.strerror}", "mend serve.host"
        ) from error
    except OSError as error:
        raise ServingError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            f"stop whoever has it (`ss -ltnp sport = :{port}` says who), or set another serve.port",
        ) from error
    return listener


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed; asyncio's own loop is slower but does the same."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


class _JsonLines(logging.Formatter):
    """A log record, traceback and all, as one line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": record.created, "event": "log", "level": record.levelname}
        line["message"] = record.getMessage()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _say(event: str, options: argparse.Namespace, **facts: Any) -> None:
    line = {"time": round(time.time(), 3), "event": event, "replica": options.replica}
    line |= {"model": options.model, "version": options.version} | facts
    # When a supervisor is killed, the other end of stderr is gone: that must not keep us from stopping.
    with contextlib.suppress(OSError):
        sys.stderr.write(json.dumps(line) + "\n")
        sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m modelyard.serving", description="Serve one bundle.")
    add = parser.add_argument
    add("--bundle", type=Path, required=True, help="folder of an unpacked bundle")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0, help="0: a free one; the ready file tells which")
    add("--ready-file", type=Path, help="written when the golden check has passed")
    add("--replica", type=int, default=0, help="number of this replica, for its log")
    add("--threads", type=_positive, default=1, help="threads of one inference")
    add("--max-batch", type=_positive, default=64)
    add("--max-request-bytes", type=_positive, default=32 * 1024 * 1024)
    add("--timeout-seconds", type=_seconds, default=30.0)
    add("--drain-seconds", type=_positive, default=30, help="longest wait for requests in flight")
    add("--model", default="", help="name to serve it under; default: the bundle's")
    add("--version", type=int, default=1)
    add("--digest", default="", help="the bundle's digest, repeated in every answer")
    add("--protocols", default="rest", help="names, separated by commas")
    add("--parent-pid", type=int, default=0, help="stop when this parent process ends")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < 86400:
        raise argparse.ArgumentTypeError("must be above 0 and below a day")
    return number


if __name__ == "__main__":
    sys.exit(main())
