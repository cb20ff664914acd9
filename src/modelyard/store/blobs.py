"""Content kept under its own digest: the ``blobs/`` of an OCI image layout, each blob whole or absent."""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from modelyard.spec.errors import NotFoundError, StoreError, from_os_error
from modelyard.store.files import digest_bytes, sync_folder

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PIECE = 1 << 20
_MEND = "the copy in the registry cannot be trusted: export the model again with `yard up`"


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a manifest or an index says of a blob (OCI image specification, *Content Descriptors*)."""

    media_type: str = msgspec.field(name="mediaType")
    digest: str
    size: int
    """Bytes."""
    artifact_type: str = msgspec.field(name="artifactType", default="")
    annotations: dict[str, str] = {}


class Incoming(NamedTuple):
    """A blob that is being written."""

    file: BinaryIO
    path: Path


@dataclass(frozen=True)
class Blobs:
    """The blobs under ``root/blobs/sha256``; putting one again is harmless and heals a damaged copy."""

    root: Path

    def put_bytes(
        self, content: bytes, media_type: str, annotations: dict[str, str] | None = None
    ) -> Descriptor:
        """Keep ``content``. Raises StoreError for a full disk or a missing permission."""
        digest = digest_bytes(content)
        with self._incoming() as incoming:
            incoming.file.write(content)
            self._publish(incoming, digest)
        return _descriptor(media_type, digest, len(content), annotations)

    def put_file(
        self, path: Path, media_type: str, annotations: dict[str, str] | None = None
    ) -> Descriptor:
        """Keep a copy of a file's content, hashed as it is copied. Raises StoreError."""
        with self._incoming() as incoming, path.open("rb") as source:
            digest, size = _copy(source, incoming.file)
            self._publish(incoming, digest)
        return _descriptor(media_type, digest, size, annotations)

    def path(self, digest: str) -> Path:
        """Where a blob lies. Raises StoreError where ``digest`` is not ``sha256:`` and 64 hex digits."""
        if not _DIGEST.fullmatch(digest):
            raise StoreError(
                f"{digest!r} is not a digest", "a digest is sha256: and 64 hexadecimal digits"
            )
        return self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def holds(self, digest: str) -> bool:
        """Whether the blob is there; its content is not read."""
        return self.path(digest).is_file()

    def read(self, digest: str) -> bytes:
        """A small blob's content, checked. Raises NotFoundError, or StoreError where it is damaged."""
        with self._open(digest) as file:
            content = file.read()
        if digest_bytes(content) != digest:
            raise StoreError(
                f"{self.path(digest)} is damaged: its content has another digest", _MEND
            )
        return content

    def verify(self, digest: str) -> None:
        """Read the whole blob and compare its digest. Raises NotFoundError or StoreError."""
        with Path(os.devnull).open("wb") as nowhere:
            self._checked_copy(digest, nowhere)

    def copy(self, digest: str, target: Path) -> None:
        """Write the blob's content to ``target`` (its folder exists), checked while it is copied.

        Raises NotFoundError or StoreError; ``target`` may then hold part of it.
        """
        try:
            with target.open("xb") as file:
                self._checked_copy(digest, file)
        except OSError as error:
            raise from_os_error(error, target) from error

    def _checked_copy(self, digest: str, file: BinaryIO) -> None:
        with self._open(digest) as source:
            found, _ = _copy(source, file)
        if found != digest:
            raise StoreError(
                f"{self.path(digest)} is damaged: its content has another digest", _MEND
            )

    def _open(self, digest: str) -> BinaryIO:
        path = self.path(digest)
        try:
            return path.open("rb")
        except FileNotFoundError as error:
            raise NotFoundError(
                f"the registry holds no blob {digest}", "export the model again with `yard up`"
            ) from error
        except OSError as error:
            raise from_os_error(error) from error

    @contextmanager
    def _incoming(self) -> Iterator[Incoming]:
        """A temporary file beside the blobs, removed unless it was published."""
        temporary = None
        try:
            folder = self.root / "blobs" / "sha256"
            folder.mkdir(parents=True, exist_ok=True)
            # Not among the blobs: a tool that walks the layout must never meet a half-written one.
            handle, name = tempfile.mkstemp(dir=_partial(self.root), prefix="blob.")
            temporary = Path(name)
            with os.fdopen(handle, "wb") as file:
                yield Incoming(file, temporary)
        except OSError as error:
            raise from_os_error(error, self.root) from error
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    def _publish(self, incoming: Incoming, digest: str) -> None:
        incoming.file.flush()
        os.fsync(incoming.file.fileno())
        incoming.path.chmod(0o644)
        target = self.path(digest)
        incoming.path.replace(target)
        sync_folder(target.parent)


def _partial(root: Path) -> Path:
    folder = root / ".partial"
    folder.mkdir(exist_ok=True)
    return folder


def _copy(source: BinaryIO, target: BinaryIO) -> tuple[str, int]:
    """Digest and size of what was copied."""
    state, size = hashlib.sha256(), 0
    while piece := source.read(_PIECE):
        state.update(piece)
        target.write(piece)
        size += len(piece)
    return f"sha256:{state.hexdigest()}", size


def _descriptor(
    media_type: str, digest: str, size: int, annotations: dict[str, str] | None
) -> Descriptor:
    return Descriptor(
        media_type=media_type, digest=digest, size=size, annotations=annotations or {}
    )
