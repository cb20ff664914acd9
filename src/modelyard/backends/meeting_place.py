"""Where workers find each other: a file or an address, and then one line between each two of them."""

import contextlib
import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from modelyard.spec.errors import TrainingError
from modelyard.spec.work import World

MEETING_SECONDS = 60.0
"""How long a worker waits for the others at the start."""
_PAUSE = 0.005
_HELLO = 36
"""Bytes: the secret of who is called, as 32 letters, and the caller's rank, as 4."""
Card = dict[str, Any]
"""Where a worker listens: rank, host, port and the secret that a caller must know."""


def find_others(world: World) -> dict[int, socket.socket]:
    """Rank to an open line, for every other worker.

    ``world.rendezvous`` is ``file:///path/of/a/new/file`` on one machine, or ``tcp://host:port``, where
    worker 0 listens. Raises TrainingError naming the workers that did not come in time.
    """
    deadline = time.monotonic() + MEETING_SECONDS
    place = urlsplit(world.rendezvous)
    if place.scheme == "file":
        with socket.create_server(("127.0.0.1", 0), backlog=world.size) as door:
            cards = _meet_at_file(world, Path(unquote(place.path)), _card(world, door), deadline)
            return _connect(world, door, cards, deadline)
    if place.scheme == "tcp" and place.hostname and place.port:
        with socket.create_server(("", 0), backlog=world.size) as door:
            cards = _meet_at_address(
                world, place.hostname, place.port, _card(world, door), deadline
            )
            return _connect(world, door, cards, deadline)
    raise TrainingError(
        f"{world.rendezvous!r} is no meeting place for {world.size} workers",
        "use file:///path/of/a/new/file or tcp://host:port",
    )


def _card(world: World, door: socket.socket) -> Card:
    return {
        "rank": world.rank,
        "host": "127.0.0.1",
        "port": door.getsockname()[1],
        "secret": secrets.token_hex(16),
    }


def _meet_at_file(world: World, path: Path, mine: Card, deadline: float) -> dict[int, Card]:
    """Each appends one line; a line is a single write, so none is ever mixed with another."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, json.dumps(mine).encode() + b"\n")
        finally:
            os.close(handle)
        while True:
            lines = path.read_text().splitlines(keepends=True)
            found = [json.loads(line) for line in lines if line.endswith("\n")]
            cards = {card["rank"]: card for card in found}
            if len(cards) == world.size:
                return cards
            _wait(world, set(cards), deadline)
    except OSError as error:
        raise _unreachable(world, error) from error


def _meet_at_address(
    world: World, host: str, port: int, mine: Card, deadline: float
) -> dict[int, Card]:
    if world.rank == 0:
        return _receive(world, port, mine, deadline)
    while True:
        try:
            with socket.create_connection((host, port), timeout=1.0) as line:
                mine = {**mine, "host": line.getsockname()[0]}
                line.settimeout(max(0.1, deadline - time.monotonic()))
                line.sendall(json.dumps(mine).encode() + b"\n")
                with line.makefile("rb") as answers:
                    answer = answers.readline()
            if answer:
                cards = {card["rank"]: card for card in json.loads(answer)}
                return {**cards, 0: {**cards[0], "host": host}}
        except OSError as error:
            if time.monotonic() > deadline:
                raise _unreachable(world, error) from error
        _wait(world, {world.rank}, deadline)


def _receive(world: World, port: int, mine: Card, deadline: float) -> dict[int, Card]:
    """Worker 0 collects everybody's card and gives all of them to everybody."""
    cards, lines = {0: mine}, []
    with contextlib.ExitStack() as stack:
        try:
            door = stack.enter_context(socket.create_server(("", port), backlog=world.size))
        except OSError as error:
            raise _unreachable(world, error) from error
        door.settimeout(0.2)
        while len(cards) < world.size:
            with contextlib.suppress(TimeoutError, ValueError, KeyError):
                line = stack.enter_context(door.accept()[0])
                line.settimeout(2.0)
                card = json.loads(stack.enter_context(line.makefile("rb")).readline(4096))
                cards[int(card["rank"])] = card
                lines.append(line)
            if len(cards) < world.size:
                _wait(world, set(cards), deadline)
        for line in lines:
            line.sendall(json.dumps(list(cards.values())).encode() + b"\n")
    return cards


def _connect(
    world: World, door: socket.socket, cards: dict[int, Card], deadline: float
) -> dict[int, socket.socket]:
    """Call those of a lower rank, and be called by those of a higher one."""
    lines: dict[int, socket.socket] = {}
    try:
        for rank in range(world.rank):
            card = cards[rank]
            line = socket.create_connection((card["host"], card["port"]), timeout=10.0)
            line.sendall(f"{card['secret']}{world.rank:4d}".encode())
            lines[rank] = line
        secret = cards[world.rank]["secret"]
        door.settimeout(0.2)
        while len(lines) < world.size - 1:
            with contextlib.suppress(TimeoutError):
                line = door.accept()[0]
                line.settimeout(2.0)
                hello = line.recv(_HELLO, socket.MSG_WAITALL).decode(errors="replace")
                if hello[:32] == secret:
                    lines[int(hello[32:])] = line
                else:
                    line.close()
            if len(lines) < world.size - 1:
                _wait(world, {world.rank, *lines}, deadline)
    except OSError as error:
        for line in lines.values():
            line.close()
        raise _unreachable(world, error) from error
    return lines


def _wait(world: World, there: set[int], deadline: float) -> None:
    if time.monotonic() > deadline:
        absent = ", ".join(str(rank) for rank in range(world.size) if rank not in there)
        raise TrainingError(
            f"worker {world.rank} waited {MEETING_SECONDS:.0f} s at {world.rendezvous}; "
            f"not there: worker {absent} of {world.size}",
            "the logs of those workers say why",
        )
    time.sleep(_PAUSE)


def _unreachable(world: World, error: OSError) -> TrainingError:
    return TrainingError(
        f"worker {world.rank} could not meet the others at {world.rendezvous}: {error.strerror or error}",
        "worker 0 must be up, and its address reachable from here",
    )
