"""Data behind a URL (``s3://``, ``https://``, …): listed, fetched when it is read, kept in a bounded cache.

What a file is, is told by its store: size and ETag, checksum, or time of change. That is trusted, so
that finding out whether the data has changed costs a listing and no download. A file of which the
store tells nothing is fetched and hashed each time. Each fetched file is checked against its size,
and against what the store says of it afterwards.
"""

import contextlib
import hashlib
import importlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from modelyard.data.place import Place, is_junk
from modelyard.data.remote_cache import Cache
from modelyard.data.sources.base import natural_order
from modelyard.spec.errors import DataError, MissingExtraError, did_you_mean
from modelyard.spec.urls import CREDENTIALS, printable, secret_in

_ATTEMPTS = 4
_PAUSE = 0.3
"""Seconds before the second attempt; three times as long before each next one."""
_AHEAD = 3
"""Files that are fetched while one is read."""
_STAMPS = (
    "VersionId",
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "Content-MD5",
    "Digest",
    "checksum",
    "generation",
    "LastModified",
    "Last-Modified",
    "last_modified",
    "mtime",
    "updated",
    "modified",
    "created",
)
"""What stores call a file's version, most telling first."""
_TIMEOUTS = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 2}}
_OPTIONS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": _TIMEOUTS}}
_IN_EXTRA = ("s3", "s3a", "https", "http")
_COMMON = ("s3", "https", "http", "gs", "az", "abfs", "file", "memory", "sftp", "hdfs")
_SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSWORD|KEY|CREDENTIAL")
_NO_CONNECTION = {
    "ClientConnectorError",
    "ClientConnectorDNSError",
    "ServerDisconnectedError",
    "ConnectionTimeoutError",
    "FSTimeoutError",
    "TimeoutError",
}
_REFUSED = {401, 403, 408, 429, *range(500, 600)}
"""HTTP answers that do not say that nothing is there."""
T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """One file as its store lists it."""

    path: str
    """What fsspec's file system calls it."""
    size: int | None
    stamp: str
    """Empty where the store tells nothing."""


class RemotePlace(Place):
    """Files of any store that fsspec knows. Raises DataError, UsageError, MissingExtraError."""

    def __init__(self, url: str, folder: Path, limit: int, say: Callable[[str], None]) -> None:
        if secret := secret_in(url):
            raise DataError(f"data.path holds {secret}", f"take it out: {CREDENTIALS}")
        self.shown = printable(url)
        self._url, self._say = url, say
        self._cache, self._limit = Cache(folder, limit), limit

    @property
    def single(self) -> bool:  # type: ignore[override]
        return self._listing[0]

    @cached_property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        return sorted(self._listing[1], key=natural_order)

    def paths(self) -> Sequence[Path]:
        return []

    def stamps(self) -> Sequence[str]:
        return [
            f"{name} {file.size} {self._stamp(name)}"
            for name, file in sorted(self._listing[1].items())
        ]

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        file = self._listing[1][name]
        # A suffix tells the reader what the file is.
        key = _digest(self._url, file.path, str(file.size), file.stamp or self._session)
        key += "".join(PurePosixPath(name).suffixes[-2:])
        with self._cache.hold(
            key, file.size or 0, lambda path: self._fetch(name, path), self.where(name)
        ) as path:
            yield path

    def walk(self, names: Sequence[str]) -> Iterator[tuple[str, Path]]:
        """One file after the other, the next ones being fetched meanwhile."""
        largest = max((self._listing[1][name].size or 0 for name in names), default=0)
        # What is fetched ahead must not push out what is being read.
        ahead = _AHEAD if (_AHEAD + 1) * largest <= self._limit else 0
        waiting: deque[Future[None]] = deque()
        with ThreadPoolExecutor(max_workers=_AHEAD) as pool:
            try:
                for place, name in enumerate(names):
                    while len(waiting) < min(ahead, len(names) - place - 1):
                        waiting.append(pool.submit(self._touch, names[place + 1 + len(waiting)]))
                    with self.local(name) as path:
                        self._say(f"reading {name} ({place + 1} of {len(names)} files)")
                        yield name, path
                    if waiting:
                        waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    # ------------------------------------------------------------------------------------------

    @cached_property
    def _session(self) -> str:
        """In place of a stamp: files of which nothing is known are fetched once by each process."""
        return f"{os.getpid()} {time.time_ns()}"

    def _touch(self, name: str) -> None:
        with self.local(name):
            pass

    def _stamp(self, name: str) -> str:
        file = self._listing[1][name]
        if file.stamp:
            return file.stamp
        with self.local(name) as path, path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()

    @cached_property
    def _system(self) -> Any:
        protocol = self._url.partition("://")[0].lower()
        try:
            fsspec = importlib.import_module("fsspec")
            options = {"skip_instance_cache": True, "use_listings_cache": False}
            return fsspec.filesystem(protocol, **options, **_OPTIONS.get(protocol, {}))
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"{self.shown} needs the package {error.name!r}", "remote"
            ) from error
        except ImportError as error:  # fsspec knows the protocol and names the package
            if protocol in _IN_EXTRA:
                raise MissingExtraError(f"{self.shown}: {_scrubbed(error)}", "remote") from error
            raise DataError(
                f"{self.shown}: {_scrubbed(error)}", "install that package with pip"
            ) from error
        except ValueError as error:
            hint = did_you_mean(f"{protocol}://", [f"{name}://" for name in _COMMON])
            raise DataError(
                f"{self.shown}: no store is reached by {protocol}://{hint}", "mend data.path"
            ) from error

    @cached_property
    def _listing(self) -> tuple[bool, dict[str, RemoteFile]]:
        """Whether the URL is one file, and every file by its relative name."""
        base = self._system._strip_protocol(self._url).rstrip("/")  # how fsspec spells it
        found = self._tried(lambda: self._find(base))
        files = {}
        single = len(found) == 1 and _spelt(next(iter(found)), base) == base
        for path, info in found.items():
            name = (
                PurePosixPath(base).name if single else _spelt(path, base)[len(base) :].strip("/")
            )
            hidden = any(is_junk(part) for part in name.split("/"))
            if info.get("type") == "file" and name and not (hidden and not single):
                files[name] = RemoteFile(path, info.get("size"), _stamp_of(info))
        return single, files

    def _find(self, base: str) -> dict[str, dict[str, Any]]:
        info = self._system.info(base)
        if info.get("type") == "file":
            return {base: info}
        found: dict[str, dict[str, Any]] = self._system.find(base, detail=True)
        return found

    def _fetch(self, name: str, path: Path) -> None:
        file = self._listing[1][name]
        self._tried(lambda: self._system.get_file(file.path, str(path)))
        got = path.stat().st_size
        if file.size is not None and got != file.size:
            raise DataError(
                f"{self.where(name)}: {got} bytes came, {file.size} were listed",
                "run the command again",
            )
        if (
            file.stamp
            and _stamp_of(self._tried(lambda: self._system.info(file.path))) != file.stamp
        ):
            raise DataError(
                f"{self.where(name)} changed while it was fetched", "run the command again"
            )

    def _tried(self, act: Callable[[], T]) -> T:
        """``act``, several times where what went wrong may pass. Raises DataError."""
        for attempt in range(_ATTEMPTS):
            try:
                return act()
            except Exception as error:  # every store's library has exceptions of its own
                final = _final(error, self.shown)
                if final is None and attempt + 1 < _ATTEMPTS:
                    self._say(f"{self.shown}: {type(error).__name__}, trying again")
                    time.sleep(_PAUSE * 3**attempt)
                    continue
                raise final or _unreachable(error, self.shown) from error
        raise AssertionError("the loop returns or raises")


def _stamp_of(info: dict[str, Any]) -> str:
    name = next((name for name in _STAMPS if info.get(name)), "")
    value = info.get(name)
    # One and the same time comes as a time or as a number, by what was asked.
    return f"{name}={value.timestamp() if isinstance(value, datetime) else value}" if name else ""


def _spelt(path: str, base: str) -> str:
    """Some file systems begin their paths with a slash, others do not."""
    return path if path.startswith("/") == base.startswith("/") else path.lstrip("/")


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _final(error: Exception, shown: str) -> DataError | None:
    """What will not pass by waiting, told; None for the rest."""
    kinds = {type(one).__name__ for one in _chain(error)}
    text = " ".join(str(one) for one in _chain(error))
    if kinds & {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}:
        return DataError(f"no credentials for {shown}", f"set them: {CREDENTIALS}")
    if "bucket does not exist" in text or "NoSuchBucket" in text:
        bucket = shown.partition("://")[2].partition("/")[0]
        return DataError(f"there is no bucket {bucket!r} for {shown}", "mend data.path")
    # fsspec says "not found" of an HTTP address whatever went wrong; the cause knows better.
    status = next((int(one.status) for one in _chain(error) if hasattr(one, "status")), 0)
    denied = ("Forbidden", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")
    if isinstance(error, FileNotFoundError) and not (kinds & _NO_CONNECTION or status in _REFUSED):
        return DataError(f"data.path: nothing at {shown}", "mend data.path")
    if (
        isinstance(error, PermissionError)
        or status in (401, 403)
        or any(word in text for word in denied)
    ):
        return DataError(
            f"{shown} may not be read with the credentials at hand",
            f"ask for permission, or set others: {CREDENTIALS}",
        )
    return None


def _unreachable(error: Exception, shown: str) -> DataError:
    cause = next((one for one in _chain(error) if not isinstance(one, FileNotFoundError)), error)
    return DataError(
        f"{shown} cannot be reached after {_ATTEMPTS} attempts: {_scrubbed(cause)}",
        "look at the network, at the address and (S3 elsewhere than at Amazon) at AWS_ENDPOINT_URL",
    )


def _scrubbed(error: BaseException) -> str:
    """The error's first line, without anything that stands in a variable for secrets."""
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    for name, value in os.environ.items():
        if len(value) >= 6 and _SECRET_VARIABLE.search(name):
            text = text.replace(value, "…")
    return text
