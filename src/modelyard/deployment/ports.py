"""The service's address: taken before anything starts, or refused with the name of who holds it."""

import contextlib
import errno
import os
import socket
from pathlib import Path

from modelyard.spec.errors import DeploymentError

_LISTEN = "0A"


def listen_on(host: str, port: int) -> socket.socket:
    """A bound socket. Raises DeploymentError naming the reason and the mend."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise DeploymentError(
            f"serve.host: {host!r} is not an address of this machine: {error.strerror or error}",
            "set serve.host to 127.0.0.1, or to 0.0.0.0 to open the service to the network",
        ) from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise _refused(host, port, error) from error
    sock.setblocking(False)
    return sock


def check_free(host: str, port: int) -> None:
    """Raises DeploymentError where the address cannot be listened on."""
    listen_on(host, port).close()


def _refused(host: str, port: int, error: OSError) -> DeploymentError:
    if error.errno == errno.EADDRINUSE:
        holder = holder_of(port)
        return DeploymentError(
            f"port {port} is in use{f' by {holder}' if holder else ''}",
            f"choose another with serve.port={port + 1 if port < 65535 else 8080}, or stop what holds it",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return DeploymentError(
            f"no permission to listen on port {port}",
            "choose a port above 1023 with serve.port=8080",
        )
    return DeploymentError(
        f"cannot listen on {host}:{port}: {error.strerror or error}",
        "set serve.host to 127.0.0.1, or to 0.0.0.0 to open the service to the network",
    )


def holder_of(port: int) -> str:
    """``python server.py (pid 123)``, or an empty string where the system does not tell."""
    inodes = _listening_inodes(port)
    for folder in Path("/proc").glob("[0-9]*") if inodes else ():
        with contextlib.suppress(OSError):  # it ended meanwhile, or belongs to somebody else
            if any(_target(link) in inodes for link in (folder / "fd").iterdir()):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                return f"{command[:100]} (pid {folder.name})"
    return ""


def _target(link: Path) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115 - "socket:[123]" is no path
    except OSError:
        return ""  # closed meanwhile


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        lines = table.read_text().splitlines()[1:] if table.exists() else []
        for fields in map(str.split, lines):
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found
