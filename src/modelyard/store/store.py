"""The store's map: which record lies where."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from modelyard.spec.errors import NotFoundError, StoreError, from_os_error
from modelyard.spec.records import Record
from modelyard.store.files import write_atomic

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Store:
    """The folder that holds everything Modelyard keeps; every path is asked for here."""

    root: Path

    @property
    def registry(self) -> Path:
        """OCI image layout of bundles."""
        return self.root / "registry"

    @property
    def ledger(self) -> Path:
        """SQLite file: who changed what, and the digests of files already read."""
        return self.root / "ledger.sqlite"

    def dataset_folder(self, identifier: str) -> Path:
        return self.root / "data" / identifier

    def run_folder(self, identifier: str) -> Path:
        return self.root / "runs" / identifier

    def bundle_folder(self, digest: str) -> Path:
        """Where a bundle is unpacked for a service to read; a cache of the registry."""
        return self.root / "cache" / digest.replace(":", "-")

    def export_record(self, key: str) -> Path:
        """Which bundle a finished export gave."""
        return self.root / "exports" / f"{key}.json"

    def deployment_folder(self, name: str) -> Path:
        return self.root / "deployments" / name

    def read(self, path: Path, kind: type[R]) -> R:
        """Read one record. Raises NotFoundError where it is missing, StoreError where it is damaged."""
        try:
            return kind.from_json(path.read_bytes())
        except FileNotFoundError as error:
            raise NotFoundError(
                f"no {kind.__name__.lower()} at {path}", "`yard status` lists what there is"
            ) from error
        except msgspec.DecodeError as error:
            raise StoreError(
                f"{path} is damaged: {error}", "delete that file; it is made again"
            ) from error

    def read_or_none(self, path: Path, kind: type[R]) -> R | None:
        return self.read(path, kind) if path.exists() else None

    def write(self, path: Path, record: Record) -> None:
        """Write one record whole. Raises StoreError for a full disk or a missing permission."""
        try:
            write_atomic(path, record.to_json())
        except OSError as error:
            raise from_os_error(error) from error


def open_store(root: Path) -> Store:
    """Open the store at ``root``, making it where it is missing. Raises StoreError."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        ignore = root / ".gitignore"
        if not ignore.exists():
            write_atomic(ignore, b"*\n")
    except OSError as error:
        raise from_os_error(error) from error
    return Store(root)
