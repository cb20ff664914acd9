"""Blobs: content under its own digest, whole or absent, never believed unchecked."""

from collections.abc import Callable
from pathlib import Path

import pytest

from modelyard.spec.errors import NotFoundError, StoreError
from modelyard.store.blobs import Blobs
from modelyard.store.files import digest_bytes

PUT_FOR_EVER = """
from pathlib import Path
from modelyard.store.blobs import Blobs
blobs, turn = Blobs(Path(sys.argv[1])), 0
print("ready", flush=True)
while True:
    turn += 1
    blobs.put_bytes(str(turn).encode() * 200_000, "text/plain")
"""
PUT_ON_A_NEARLY_FULL_DISK = """
import resource, signal
from pathlib import Path
from modelyard.spec.errors import StoreError
from modelyard.store.blobs import Blobs
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    Blobs(Path(sys.argv[1])).put_bytes(b"x" * 20_000, "text/plain")
except StoreError as error:
    sys.exit(0)
sys.exit("no error")
"""


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_content_comes_back_by_its_digest(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    put = blobs.put_bytes(b"hello", "text/plain", {"key": "value"})
    assert (put.digest, put.size) == (digest_bytes(b"hello"), 5)
    assert (put.media_type, put.annotations) == ("text/plain", {"key": "value"})
    assert blobs.read(put.digest) == b"hello"
    assert blobs.path(put.digest).relative_to(tmp_path).parts[:2] == ("blobs", "sha256")


def test_the_same_content_is_kept_once(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    (tmp_path / "file").write_bytes(b"hello")
    first = blobs.put_bytes(b"hello", "text/plain")
    assert blobs.put_file(tmp_path / "file", "text/plain") == first
    assert len(files(tmp_path / "blobs")) == 1


def test_a_damaged_blob_is_refused_and_healed_by_putting_it_again(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    digest = blobs.put_bytes(b"hello", "text/plain").digest
    blobs.path(digest).write_bytes(b"hellO")
    for use in (blobs.read, blobs.verify, lambda d: blobs.copy(d, tmp_path / "copy")):
        with pytest.raises(StoreError, match="is damaged: its content has another digest"):
            use(digest)
    blobs.put_bytes(b"hello", "text/plain")
    blobs.verify(digest)


def test_a_blob_that_was_never_put_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="the registry holds no blob sha256:2cf2"):
        Blobs(tmp_path).read(digest_bytes(b"hello"))


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:../../secret", "md5:" + "0" * 32, "sha256:" + "A" * 64]
)
def test_only_a_digest_names_a_blob(tmp_path: Path, digest: str) -> None:
    with pytest.raises(StoreError, match="is not a digest"):
        Blobs(tmp_path).read(digest)


@pytest.mark.parametrize("turn", range(5))
def test_every_blob_of_a_killed_writer_is_whole(
    tmp_path: Path, turn: int, kill_in_the_middle: Callable[..., None]
) -> None:
    kill_in_the_middle(PUT_FOR_EVER, tmp_path, within=0.1)
    blobs = Blobs(tmp_path)
    for file in files(tmp_path / "blobs"):
        blobs.verify(f"sha256:{file.name}")


def test_content_that_does_not_fit_on_the_disk_leaves_nothing(
    tmp_path: Path, run_together: Callable[..., None]
) -> None:
    run_together(PUT_ON_A_NEARLY_FULL_DISK, [(tmp_path,)])
    assert files(tmp_path) == []
