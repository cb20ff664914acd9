"""Data behind URLs, against a real S3 server on this machine: fetched once, cached, and honest errors."""

import functools
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modelyard.data.dataset import dataset_id, open_split, prepare
from modelyard.data.remote import RemotePlace
from modelyard.spec.errors import DataError, MissingExtraError, ProjectError
from modelyard.spec.read import read_project

SECRET = "wJalrXUtnFEMI-not-a-real-secret"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Moto's S3 on a free port, and the file of its log: a line for each request."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}", log
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)


@pytest.fixture
def s3(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The S3 API's own client, in an environment that leads to the server; a new bucket ``data``."""
    import botocore.session

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server[0])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    client = botocore.session.get_session().create_client("s3", endpoint_url=server[0])
    client.create_bucket(Bucket="data")
    yield client
    for item in client.list_objects_v2(Bucket="data").get("Contents", []):
        client.delete_object(Bucket="data", Key=item["Key"])
    client.delete_bucket(Bucket="data")


def fetched(server: tuple[str, Path]) -> Counter[str]:
    """How often the content of each object was asked for."""
    lines = server[1].read_text().splitlines()
    paths = [line.split('"GET ')[1].split(" ")[0] for line in lines if '"GET /data/' in line]
    return Counter(path.split("?")[0] for path in paths if "?" not in path.rstrip("?"))


def shards(count: int, rows: int = 100) -> list[bytes]:
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        table = {
            "x": random.normal(size=rows),
            "y": random.normal(size=rows),
            "label": random.integers(0, 2, rows),
        }
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(table), sink)
        made.append(sink.getvalue().to_pybytes())
    return made


def cached(store) -> list[Path]:
    return [
        path for path in (store.root / "cache" / "data" / "remote").glob("*/*") if path.is_file()
    ]


@pytest.fixture
def asked(project, tmp_path: Path):
    """``asked(url, source)``: a project whose store is the fixture's."""

    def make(url: str, source: str = "parquet", **data: Any):
        made = project(source=source, path=url, **data)
        return made.model_copy(update={"store": made.store.model_copy(update={"url": "store"})})

    return make


def test_each_shard_is_fetched_once_and_then_only_listed(s3, server, asked, store) -> None:
    for number, content in enumerate(shards(5)):
        s3.put_object(Bucket="data", Key=f"deep/part-{number}.parquet", Body=content)
    project = asked("s3://data/deep")
    before = fetched(server)
    said: list[str] = []
    dataset = prepare(project, store, on_progress=said.append)
    assert dataset.samples == 500 and dataset.path == "s3://data/deep"
    gets = fetched(server) - before
    assert gets == {f"/data/deep/part-{number}.parquet": 1 for number in range(5)}
    assert "reading part-3.parquet (4 of 5 files)" in said
    again = prepare(project, store)
    assert again == dataset and fetched(server) - before == gets
    inputs, _ = open_split(dataset, "train").batch(np.arange(10))
    assert inputs.shape == (10, 2)


def test_a_changed_object_is_fetched_anew_and_the_others_are_not(s3, server, asked, store) -> None:
    old, *rest, new = shards(4)
    for number, content in enumerate([old, *rest]):
        s3.put_object(Bucket="data", Key=f"c/{number}.parquet", Body=content)
    project = asked("s3://data/c/")
    first = prepare(project, store)
    before = fetched(server)
    s3.put_object(Bucket="data", Key="c/0.parquet", Body=new)
    second = prepare(project, store)
    assert second.id != first.id
    assert fetched(server) - before == {"/data/c/0.parquet": 1}
    s3.put_object(Bucket="data", Key="c/0.parquet", Body=old)
    assert dataset_id(project, store) == first.id


def test_the_cache_is_bounded(s3, server, asked, store) -> None:
    made = shards(6, rows=2000)
    size = len(made[0])
    for number, content in enumerate(made):
        s3.put_object(Bucket="data", Key=f"{number}.parquet", Body=content)
    before = fetched(server)
    dataset = prepare(asked("s3://data", cache_gb=2.5 * size / 1e9), store)
    assert dataset.samples == 12_000
    assert (
        set((fetched(server) - before).values()) == {1}
        or (fetched(server) - before)["/data/0.parquet"] == 2
    )
    assert 0 < sum(path.stat().st_size for path in cached(store)) <= 2.5 * size
    with pytest.raises(DataError, match="more than the whole cache may hold") as caught:
        prepare(
            asked("s3://data", cache_gb=0.5 * size / 1e9, target="label", split={"seed": 1}), store
        )
    assert "data.cache_gb" in caught.value.mend


@pytest.mark.parametrize("source", ["csv", "jsonl", "npz", "arrow", "images"])
def test_every_source_reads_urls(source: str, s3, asked, store, tmp_path: Path, project) -> None:
    """The same files from here and from S3 give the same arrays."""
    folder = tmp_path / "files"
    folder.mkdir()
    x, y = np.random.default_rng(0).normal(size=(30, 3)), np.arange(30) % 2
    if source == "csv":
        lines = ["a,b,label", *(f"{a},{b},{c}" for (a, b, _), c in zip(x, y, strict=True))]
        (folder / "t.csv").write_text("\n".join(lines))
    elif source == "jsonl":
        (folder / "t.jsonl").write_text(
            "\n".join(f'{{"a": {v[0]}, "label": {c}}}' for v, c in zip(x, y, strict=True))
        )
    elif source == "npz":
        np.savez(folder / "t.npz", x=x, label=y)
    elif source == "arrow":
        table = pa.table({"a": x[:, 0], "label": y})
        with pa.ipc.new_file(str(folder / "t.arrow"), table.schema) as out:
            out.write_table(table)
    else:
        from PIL import Image

        for number in range(30):
            (folder / str(y[number])).mkdir(exist_ok=True)
            pixels = (np.abs(x[number]).repeat(12).reshape(3, 12) * 60).astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(y[number]) / f"{number}.png")
    for file in folder.rglob("*.*"):
        s3.put_object(Bucket="data", Key=f"in/{file.relative_to(folder)}", Body=file.read_bytes())
    tail = "/t.csv" if source == "csv" else ""
    size = {"size": [4, 4]} if source == "images" else {}
    local = prepare(asked(f"files{tail}", source, **size), store)
    from_url = prepare(asked(f"file://{folder}{tail}", source, **size), store)
    remote = prepare(asked(f"s3://data/in{tail}", source, **size), store)
    for name in ("inputs.npy", "targets.npy", "train.npy"):
        content = (Path(local.folder) / name).read_bytes()
        assert (Path(remote.folder) / name).read_bytes() == content
        assert (Path(from_url.folder) / name).read_bytes() == content


def test_memory_and_https_like_stores(asked, store, tmp_path: Path) -> None:
    import fsspec

    content = shards(1)[0]
    fsspec.filesystem("memory").pipe("/here/a.parquet", content)
    assert prepare(asked("memory://here"), store).samples == 100
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.parquet").write_bytes(content)
    handler = functools.partial(_Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{web.server_port}"
            assert prepare(asked(f"{url}/a.parquet"), store).samples == 100
            with pytest.raises(DataError, match="nothing at"):
                prepare(asked(f"{url}/b.parquet"), store)
        finally:
            web.shutdown()
            thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: Any) -> None:
        """Nothing on the terminal."""


# --- what goes wrong -----------------------------------------------------------------------


def test_what_is_not_there(s3, asked, store) -> None:
    with pytest.raises(DataError, match="there is no bucket 'nowhere'"):
        prepare(asked("s3://nowhere/a"), store)
    with pytest.raises(DataError, match="nothing at s3://data/none"):
        prepare(asked("s3://data/none"), store)
    s3.put_object(Bucket="data", Key="csv/a.csv", Body=b"a,label\n1,2\n")
    with pytest.raises(DataError, match=r"s3://data/csv: a\.csv ends in '\.csv'") as caught:
        prepare(asked("s3://data/csv"), store)
    assert caught.value.mend == 'set data.source = "csv"'


def test_no_credentials(s3, asked, store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(DataError, match=r"no credentials for s3://data") as caught:
        prepare(asked("s3://data"), store)
    assert "AWS_ACCESS_KEY_ID" in caught.value.mend


def test_an_endpoint_that_is_not_there(s3, asked, store, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(DataError, match="cannot be reached after 4 attempts") as caught:
        prepare(asked("s3://data"), store)
    assert "AWS_ENDPOINT_URL" in caught.value.mend
    assert SECRET not in str(caught.value)


def test_a_server_that_fails_a_while_is_asked_again(asked, store, tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.parquet").write_bytes(shards(1)[0])

    class Shaky(_Quiet):
        left = 4

        def do_HEAD(self) -> None:
            if Shaky.left > 1:
                Shaky.left -= 1
                self.send_error(503)
            else:
                super().do_HEAD()

        def do_GET(self) -> None:
            if Shaky.left:
                Shaky.left -= 1
                self.send_error(503)
            else:
                super().do_GET()

    handler = functools.partial(Shaky, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{web.server_port}/a.parquet"
            assert prepare(asked(url), store).samples == 100
            assert Shaky.left == 0
        finally:
            web.shutdown()
            thread.join()


def test_an_unknown_kind_of_store(asked, store) -> None:
    with pytest.raises(DataError, match=r"no store is reached by s4://; did you mean 's3://'"):
        prepare(asked("s4://data"), store)


WITHOUT = """
import sys
sys.modules["{gone}"] = None
from pathlib import Path
from modelyard.data.remote import RemotePlace
from modelyard.spec.errors import MissingExtraError
try:
    RemotePlace("s3://data", Path("{folder}"), 1, print).names
except MissingExtraError as error:
    print(error)
"""


@pytest.mark.parametrize("gone", ["fsspec", "s3fs"])
def test_a_missing_extra(gone: str, tmp_path: Path) -> None:
    code = WITHOUT.format(gone=gone, folder=tmp_path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'modelyard[remote]'" in done.stdout, done.stdout + done.stderr
    assert MissingExtraError.__name__ not in done.stderr


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"s3://someone:{SECRET}@data/x", "a user name or a password"),
        (f"https://host/a.csv?X-Amz-Signature={SECRET}", "the parameter 'X-Amz-Signature'"),
        (f"https://host/a.csv?token={SECRET}", "the parameter 'token'"),
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(
    url: str, words: str, tmp_path: Path, asked, store
) -> None:
    (tmp_path / "yard.toml").write_text(
        f'[project]\nname = "x"\n[data]\nsource = "csv"\npath = "{url}"\n[model]\nbuild = "mlp"\n'
    )
    with pytest.raises(ProjectError) as caught:
        read_project(tmp_path, environment={})
    assert words in str(caught.value) and "come from the environment" in str(caught.value)
    assert SECRET not in str(caught.value)
    with pytest.raises(DataError) as refused:
        prepare(asked(url, "csv"), store)
    assert words in str(refused.value) and SECRET not in str(refused.value)
    assert not [
        p for p in store.root.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()
    ]


def test_the_secret_of_the_environment_stands_nowhere(s3, asked, store, tmp_path: Path) -> None:
    s3.put_object(Bucket="data", Key="a.parquet", Body=shards(1)[0])
    said: list[str] = []
    prepare(asked("s3://data/a.parquet"), store, on_progress=said.append)
    assert SECRET not in "\n".join(said)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]


def test_a_killed_fetch_leaves_nothing_that_counts(s3, asked, store) -> None:
    """What lies under a temporary name without a lock is removed when room is needed."""
    made = shards(3, rows=2000)
    for number, content in enumerate(made):
        s3.put_object(Bucket="data", Key=f"{number}.parquet", Body=content)
    left = store.root / "cache" / "data" / "remote" / "ab" / ".fetch-left"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x" * 1000)
    assert prepare(asked("s3://data", cache_gb=2.2 * len(made[0]) / 1e9), store).samples == 6000
    assert not left.exists()


def test_a_place_lists_without_fetching(s3, server, tmp_path: Path) -> None:
    for name in ("b/part-10.csv", "b/part-2.csv", "b/.hidden", "b/_SUCCESS"):
        s3.put_object(Bucket="data", Key=name, Body=b"x")
    before = fetched(server)
    place = RemotePlace("s3://data/b", tmp_path, 10**6, print)
    assert list(place.names) == ["part-2.csv", "part-10.csv"] and not place.single
    assert len(place.stamps()) == 2 and all("ETag" in stamp for stamp in place.stamps())
    assert fetched(server) == before
