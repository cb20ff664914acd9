"""A local target whose replicas are the stand-in, deployments that are always taken down, and load."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from modelyard.deployment.targets.local import Local
from modelyard.spec.records import Deployment, Service

STAND_IN = Path(__file__).with_name("stand_in.py")


@pytest.fixture
def target() -> Local:
    return Local(replica_command=(str(STAND_IN),), cores=2)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    bundle = tmp_path / "bundle"
    bundle.mkdir(exist_ok=True)
    return Service(
        name="toy",
        model="toy",
        version=1,
        digest="sha256:" + "1" * 64,
        bundle_folder=str(bundle),
        port=0,
        timeout_seconds=10.0,
    )


@pytest.fixture
def folder(nothing_left: Path, target: Local) -> Iterator[Path]:
    """A deployment's folder; whatever runs for it is taken down after the test."""
    path = nothing_left / "deployment"
    yield path
    target.remove(path)


class Client:
    """One kept-alive connection, as a real client has one."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(str(urlsplit(url).netloc), timeout=30)

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body, names)
        response = self.connection.getresponse()
        content = response.read()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, content

    def close(self) -> None:
        self.connection.close()


@pytest.fixture
def client() -> Iterator[Callable[[str], Client]]:
    made: list[Client] = []

    def make(url: str) -> Client:
        made.append(Client(url))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Load:
    """16 clients that ask without a pause until they are stopped, and note every answer."""

    def __init__(self, url: str, ask: Callable[[Client, int], Any], clients: int = 16) -> None:
        self.answers: list[Any] = []
        self.errors: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(url, ask, number)) for number in range(clients)
        ]

    def _run(self, url: str, ask: Callable[[Client, int], Any], number: int) -> None:
        client = Client(url)
        try:
            while not self._stop.is_set():
                self.answers.append(ask(client, number))
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.errors.append(error)
        finally:
            client.close()

    def wait_for_more(self, count: int, seconds: float = 30.0) -> None:
        """Until ``count`` further answers came."""
        wanted = len(self.answers) + count
        deadline = time.monotonic() + seconds
        while len(self.answers) < wanted:
            assert not self.errors, self.errors[:3]
            assert time.monotonic() < deadline, f"{len(self.answers)} of {wanted}"
            time.sleep(0.01)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def load() -> type[Load]:
    return Load


def double(client: Client, number: int) -> dict[str, Any]:
    """One question whose right answer is known; fails for any other."""
    status, _, body = client.ask("POST", "/double", json.dumps({"x": number}).encode())
    assert status == 200, (status, body)
    answer: dict[str, Any] = json.loads(body)
    assert answer["answer"] == 2 * number
    return answer


@pytest.fixture
def ask_double() -> Callable[[Client, int], dict[str, Any]]:
    return double


@pytest.fixture
def wait_until(target: Local) -> Callable[..., Deployment]:
    """Observe until a deployment is as described."""

    def wait(folder: Path, true: Callable[[Deployment], bool], seconds: float = 20.0) -> Deployment:
        deadline = time.monotonic() + seconds
        while True:
            seen = target.observe(folder)
            if seen is not None and true(seen):
                return seen
            assert time.monotonic() < deadline, seen
            time.sleep(0.02)

    return wait
