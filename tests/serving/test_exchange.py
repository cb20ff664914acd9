import asyncio
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from modelyard.serving.exchange import Room, counted
from modelyard.serving.plane import load


def request(length: int | None = 0) -> Request:
    headers = [] if length is None else [(b"content-length", str(length).encode())]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers})


def test_requests_and_bytes_in_flight_are_bounded(bundle: Callable[..., Any]) -> None:
    plane = load(bundle().folder, max_request_bytes=100)
    go = asyncio.Event()

    async def handler(_: Request) -> Response:
        await go.wait()
        return Response()

    async def codes(room: Room, *lengths: int | None) -> list[int]:
        go.clear()
        endpoint = counted(plane, "test", handler, room)
        tasks = [asyncio.ensure_future(endpoint(request(length))) for length in lengths]
        await asyncio.sleep(0.01)
        go.set()
        answers = await asyncio.gather(*tasks)
        assert (room.requests, room.bytes) == (0, 0)
        return [answer.status_code for answer in answers]

    async def test() -> None:
        assert await codes(Room(2, 1000), 0) == [503]  # not ready: nothing was proved yet
        await plane.prove()
        assert await codes(Room(2, 1000), 0, 0, 0) == [200, 200, 503]
        assert await codes(Room(9, 150), 90, 60, 1) == [200, 200, 503]
        assert await codes(Room(9, 150), None, None) == [200, 503]  # unknown: counted as 100
        assert await codes(Room(9, 10), 90) == [200]  # one alone may always come in

    asyncio.run(test())
    plane.close()


def test_a_failure_of_ours_says_nothing_of_the_inside(
    bundle: Callable[..., Any], caplog: Any
) -> None:
    plane = load(bundle().folder)

    async def broken(_: Request) -> Response:
        raise ZeroDivisionError("secret")

    async def test() -> Response:
        await plane.prove()
        return await counted(plane, "test", broken, Room(9, 9))(request())

    answer = asyncio.run(test())
    assert answer.status_code == 500
    assert b"secret" not in bytes(answer.body)
    assert "ZeroDivisionError" in caplog.text  # the log has it
    plane.close()
