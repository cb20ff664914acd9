"""The model registry: an OCI image layout with bundles, their versions and the aliases that point at them.

``index.json`` is the truth. Every version is one entry (``digits:3``), every alias one more entry for
the same manifest (``digits:production``); lineage stands in annotations. Writers take a lock and
replace the file whole; readers need no lock. Entries that Modelyard did not write are kept as they are.
"""

import datetime
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from modelyard.spec.errors import (
    NotFoundError,
    StoreError,
    UsageError,
    did_you_mean,
    from_os_error,
    nearest,
)
from modelyard.spec.records import ModelVersion
from modelyard.store import ledger
from modelyard.store.files import lock, write_atomic
from modelyard.store.modelpack import (
    MANIFEST_TYPE,
    MODEL_TYPE,
    blobs,
    put_bundle,
    read_manifest,
    unpack,
)
from modelyard.store.store import Store

__all__ = [
    "add",
    "list_versions",
    "put_bundle",
    "remove_alias",
    "resolve",
    "set_alias",
    "unpack",
]

Entry = dict[str, Any]
"""A descriptor of the index as it stands in the file."""

_REFERENCE = "org.opencontainers.image.ref.name"
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_ALIAS = re.compile(r"(?![0-9]+$)[a-z0-9_][a-z0-9._-]{0,127}")
_OURS = "dev.modelyard."


def add(
    store: Store,
    name: str,
    digest: str,
    *,
    aliases: tuple[str, ...] = ("latest",),
    run: str = "",
    dataset: str = "",
    metrics: dict[str, float] | None = None,
) -> ModelVersion:
    """Give the bundle ``digest`` the next version number of ``name`` and move ``aliases`` to it.

    A bundle that is a version of that name already keeps its number; only the aliases move.
    Raises NotFoundError for a digest that was not put, UsageError for a name or alias of the wrong
    form, StoreError for a full disk or a missing permission.
    """
    _check_name(name)
    for alias in aliases:
        _check_alias(alias)
    with _changing(store) as entries:
        version = _find(entries, name, digest=digest)
        if version is None:
            number = max((item.version for item in _versions(entries, name)), default=0) + 1
            entry = _version_entry(store, name, number, digest, run, dataset, metrics or {})
            detail = {"digest": digest, "run": run, "dataset": dataset}
            ledger.record(store, "version-added", f"{name}:{number}", detail)
            entries.append(entry)
            version = _version(entry, entries)
        for alias in aliases:
            _point(store, entries, alias, version)
        return _existing(entries, name, version.version)


def list_versions(store: Store, name: str | None = None) -> list[ModelVersion]:
    """All versions, or those of one model, by name and number. Raises StoreError for a damaged index."""
    return _versions(_read(store)["manifests"], name)


def resolve(store: Store, reference: str) -> ModelVersion:
    """The version that ``reference`` names.

    ``digits:3`` is a number, ``digits:production`` an alias, ``digits@sha256:…`` a digest; plain
    ``digits`` is its alias ``production``, else ``latest``, else its highest number.
    Raises NotFoundError saying what there is.
    """
    entries = _read(store)["manifests"]
    name, mark, rest = _split(reference)
    versions = _versions(entries, name)
    if not versions:
        raise _no_model(entries, name)
    if not mark:
        by_alias = {alias: item for item in versions for alias in item.aliases}
        return by_alias.get("production") or by_alias.get("latest") or versions[-1]
    for item in versions:
        if rest == (item.digest if mark == "@" else str(item.version)) or (
            mark == ":" and rest in item.aliases
        ):
            return item
    raise _no_version(versions, reference, rest)


def set_alias(store: Store, name: str, alias: str, version: int) -> ModelVersion:
    """Point ``alias`` at a version, wherever it pointed before. Raises NotFoundError, UsageError, StoreError."""
    _check_alias(alias)
    with _changing(store) as entries:
        _point(store, entries, alias, _existing(entries, name, version))
        return _existing(entries, name, version)


def remove_alias(store: Store, name: str, alias: str) -> ModelVersion:
    """Take ``alias`` away; returns the version that it pointed at. Raises NotFoundError, StoreError."""
    with _changing(store) as entries:
        entry = _alias_entry(entries, name, alias)
        if entry is None:
            versions = _versions(entries, name)
            if not versions:
                raise _no_model(entries, name)
            raise _no_version(versions, f"{name}:{alias}", alias)
        version = _find(entries, name, digest=entry["digest"])
        ledger.record(store, "alias-removed", f"{name}:{alias}", {"digest": entry["digest"]})
        entries.remove(entry)
        if version is None:
            raise _no_version(_versions(entries, name), f"{name}:{alias}", alias)
        return _existing(entries, name, version.version)


# --- the index as it stands in the file ------------------------------------------------------


@contextmanager
def _changing(store: Store) -> Iterator[list[Entry]]:
    """The entries under the lock; what the block leaves in them becomes the new index."""
    try:
        with lock(store.registry / ".lock"):
            index = _read(store)
            before = msgspec.json.encode(index)
            yield index["manifests"]
            if msgspec.json.encode(index) != before:
                write_atomic(store.registry / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}\n')
                content = msgspec.json.format(msgspec.json.encode(index), indent=2)
                write_atomic(store.registry / "index.json", content + b"\n")
    except OSError as error:
        error.filename = str(store.registry)
        raise from_os_error(error) from error


def _read(store: Store) -> dict[str, Any]:
    path = store.registry / "index.json"
    try:
        index = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        # Checked here once, so that everything below may take it for granted.
        msgspec.convert(index.get("manifests"), list[_Checked])
    except FileNotFoundError:
        return {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [],
        }
    except OSError as error:
        raise from_os_error(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{path} is damaged: {error}", "put a backup of that file back; the blobs are untouched"
        ) from error
    return index


class _Checked(msgspec.Struct):
    digest: str
    annotations: dict[str, str] = {}


def _version_entry(
    store: Store,
    name: str,
    number: int,
    digest: str,
    run: str,
    dataset: str,
    metrics: dict[str, float],
) -> Entry:
    read_manifest(store, digest)  # refuses what is not a bundle
    size = blobs(store).path(digest).stat().st_size
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    lineage = {
        "model": name,
        "version": str(number),
        "created": created,
        "run": run,
        "dataset": dataset,
        "metrics": msgspec.json.encode(metrics, order="sorted").decode(),
    }
    return _entry(digest, size, f"{name}:{number}", lineage)


def _entry(digest: str, size: int, reference: str, ours: dict[str, str]) -> Entry:
    return {
        "mediaType": MANIFEST_TYPE,
        "artifactType": MODEL_TYPE,
        "digest": digest,
        "size": size,
        "annotations": {
            _REFERENCE: reference,
            **{_OURS + key: value for key, value in ours.items()},
        },
    }


def _point(store: Store, entries: list[Entry], alias: str, version: ModelVersion) -> None:
    """Move ``alias`` to ``version``; nothing happens where it is there already."""
    old = _alias_entry(entries, version.name, alias)
    if old is not None and old["digest"] == version.digest:
        return
    before = _find(entries, version.name, digest=old["digest"]) if old else None
    detail = {"version": version.version, "before": before.version if before else None}
    # The ledger first: after a crash in between it tells of a move that did not happen, which is
    # better than a move that it does not tell of.
    ledger.record(store, "alias-set", f"{version.name}:{alias}", detail)
    if old is not None:
        entries.remove(old)
    size = next(entry["size"] for entry in entries if entry["digest"] == version.digest)
    reference = f"{version.name}:{alias}"
    entries.append(_entry(version.digest, size, reference, {"model": version.name, "alias": alias}))


def _ours(entry: Entry, key: str) -> str:
    value: str = entry.get("annotations", {}).get(_OURS + key, "")
    return value


def _alias_entry(entries: Iterable[Entry], name: str, alias: str) -> Entry | None:
    wanted = (name, alias)
    return next((e for e in entries if (_ours(e, "model"), _ours(e, "alias")) == wanted), None)


def _versions(entries: list[Entry], name: str | None) -> list[ModelVersion]:
    found = [
        _version(entry, entries)
        for entry in entries
        if _ours(entry, "version") and name in (None, _ours(entry, "model"))
    ]
    return sorted(found, key=lambda item: (item.name, item.version))


def _version(entry: Entry, entries: list[Entry]) -> ModelVersion:
    name = _ours(entry, "model")
    aliases = (
        _ours(other, "alias")
        for other in entries
        if _ours(other, "model") == name and other["digest"] == entry["digest"]
    )
    return ModelVersion(
        name=name,
        version=int(_ours(entry, "version")),
        digest=entry["digest"],
        aliases=tuple(sorted(filter(None, aliases))),
        created=_ours(entry, "created"),
        run=_ours(entry, "run"),
        dataset=_ours(entry, "dataset"),
        metrics=msgspec.json.decode(_ours(entry, "metrics") or "{}", type=dict[str, float]),
    )


def _find(entries: list[Entry], name: str, *, digest: str) -> ModelVersion | None:
    return next((item for item in _versions(entries, name) if item.digest == digest), None)


def _existing(entries: list[Entry], name: str, version: int) -> ModelVersion:
    versions = _versions(entries, name)
    for item in versions:
        if item.version == version:
            return item
    if not versions:
        raise _no_model(entries, name)
    raise _no_version(versions, f"{name}:{version}", str(version))


# --- names, and what is said where there is none ---------------------------------------------


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > 128:
        raise UsageError(
            f"{name!r} cannot be the name of a model",
            "use lower-case letters and digits, with single hyphens, dots or underscores between them",
        )


def _check_alias(alias: str) -> None:
    if not _ALIAS.fullmatch(alias):
        raise UsageError(
            f"{alias!r} cannot be an alias",
            "use lower-case letters, digits, hyphens, dots and underscores; not a number alone",
        )


def _split(reference: str) -> tuple[str, str, str]:
    """``(name, mark, rest)`` with the mark ``:``, ``@`` or nothing."""
    for mark in ("@", ":"):
        name, found, rest = reference.partition(mark)
        if found:
            return name, mark, rest
    return reference, "", ""


def _no_model(entries: list[Entry], name: str) -> NotFoundError:
    names = sorted({item.name for item in _versions(entries, None)})
    hint = did_you_mean(name, names)
    there = f"there are: {', '.join(names)}" if names else "there is none yet: run `yard up`"
    return NotFoundError(f"no model called {name!r}{hint}", there)


def _no_version(versions: list[ModelVersion], reference: str, rest: str) -> NotFoundError:
    name = versions[0].name if versions else reference
    aliases = sorted(alias for item in versions for alias in item.aliases)
    close = nearest(rest, aliases) if not rest.isdigit() else ""
    hint = f"; did you mean '{name}:{close}'?" if close else ""
    numbers = ", ".join(str(item.version) for item in versions[-10:])
    there = f"{name} has the versions {numbers or 'none'} and the aliases {', '.join(aliases) or 'none'}"
    return NotFoundError(f"no model version {reference!r}{hint}", there)
