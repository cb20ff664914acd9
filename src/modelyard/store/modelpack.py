"""A bundle's folder as a ModelPack artifact in the registry's blobs, and back again.

The manifest depends on nothing but the folder's bytes: the same folder gives the same digest on any
machine at any time. Layers are raw files, one each, so a registry or a node that has a file already
does not fetch it twice. Format: CNCF ModelPack (github.com/modelpack/model-spec, docs/spec.md).
"""

from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from modelyard.spec.errors import StoreError, from_os_error
from modelyard.store.blobs import Blobs, Descriptor
from modelyard.store.files import new_folder
from modelyard.store.store import Store

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MODEL_TYPE = "application/vnd.cncf.model.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
_FILE = "org.cncf.model.filepath"
_DESCRIPTION = "bundle.json"
_KINDS = {".onnx": "weight", ".data": "weight", ".md": "doc"}
"""Suffix to kind of layer; ``bundle.json`` is ``weight.config``, all the rest is samples: ``dataset``."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An OCI image manifest that carries a model."""

    schema_version: int = msgspec.field(name="schemaVersion")
    media_type: str = msgspec.field(name="mediaType", default="")
    artifact_type: str = msgspec.field(name="artifactType", default="")
    config: Descriptor
    layers: list[Descriptor]


class _Described(msgspec.Struct):
    """What ``bundle.json`` tells the artifact's config."""

    name: str
    created: str
    description: str = ""
    lineage: dict[str, str] = {}


def blobs(store: Store) -> Blobs:
    """The registry's blobs."""
    return Blobs(store.registry)


def put_bundle(store: Store, folder: Path) -> str:
    """Keep every file of a bundle's folder; returns the digest of its manifest.

    Putting the same folder again gives the same digest and changes nothing. Raises StoreError for a
    folder that is no bundle, a full disk or a missing permission.
    """
    described = _described(folder)
    files = sorted(_files(folder), key=lambda file: file.relative_to(folder).as_posix())
    layers = [
        blobs(store).put_file(file, _layer_type(name), {_FILE: name})
        for file in files
        for name in [file.relative_to(folder).as_posix()]
    ]
    config = blobs(store).put_bytes(_encode(_config(described, layers)), _CONFIG_TYPE)
    manifest = Manifest(
        schema_version=2,
        media_type=MANIFEST_TYPE,
        artifact_type=MODEL_TYPE,
        config=config,
        layers=layers,
    )
    return blobs(store).put_bytes(_encode(manifest), MANIFEST_TYPE).digest


def unpack(store: Store, digest: str) -> Path:
    """The bundle as a folder, every file checked against its digest.

    A folder that was unpacked before and still holds every file in its size is used again.
    Raises NotFoundError for an unknown digest; StoreError for a damaged blob or a manifest that
    would write outside the folder.
    """
    layers = {_place(layer): layer for layer in read_manifest(store, digest).layers}
    target = store.bundle_folder(digest)
    if _complete(target, layers):
        return target
    try:
        with new_folder(target) as folder:
            for place, layer in layers.items():
                path = folder / place
                path.parent.mkdir(parents=True, exist_ok=True)
                blobs(store).copy(layer.digest, path)
    except OSError as error:
        raise from_os_error(error, target) from error
    return target


def read_manifest(store: Store, digest: str) -> Manifest:
    """A bundle's manifest, checked. Raises NotFoundError, or StoreError where it is no model's manifest."""
    content = blobs(store).read(digest)
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as error:
        raise _not_a_bundle(digest, str(error)) from error
    if manifest.artifact_type != MODEL_TYPE:
        raise _not_a_bundle(digest, f"its artifact type is {manifest.artifact_type!r}")
    places = [_place(layer) for layer in manifest.layers]
    if len(set(places)) != len(places):
        raise _not_a_bundle(digest, "two layers have the same file name")
    folders = {parent for place in places for parent in place.parents}
    if both := folders & set(places):
        raise _not_a_bundle(digest, f"{min(both)} is a file and a folder")
    return manifest


def whole(store: Store, digest: str) -> bool:
    """Whether the manifest and every blob it names are there; contents are not read again."""
    if not blobs(store).holds(digest):
        return False
    manifest = read_manifest(store, digest)
    return all(
        blobs(store).holds(part.digest)
        and blobs(store).path(part.digest).stat().st_size == part.size
        for part in (manifest.config, *manifest.layers)
    )


def _described(folder: Path) -> _Described:
    try:
        return msgspec.json.decode((folder / _DESCRIPTION).read_bytes(), type=_Described)
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(
            f"{folder} is not a bundle: {_DESCRIPTION}: {error}", "export it again with `yard up`"
        ) from error


def _files(folder: Path) -> list[Path]:
    found = []
    for path in folder.rglob("*"):
        # A link would carry in whatever it points at, from anywhere.
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise StoreError(f"{path} is not a plain file", "a bundle holds plain files only")
        if path.is_file():
            found.append(path)
    return found


def _layer_type(name: str) -> str:
    kind = _KINDS.get(PurePosixPath(name).suffix, "dataset")
    return f"application/vnd.cncf.model.{'weight.config' if name == _DESCRIPTION else kind}.v1.raw"


def _config(described: _Described, layers: list[Descriptor]) -> dict[str, Any]:
    """ModelPack's config (schema/config-schema.json); a raw layer's diff id is its own digest."""
    descriptor = {
        "name": described.name,
        "createdAt": described.created,
        "description": described.description,
        "revision": described.lineage.get("code", ""),
    }
    return {
        "descriptor": {key: value for key, value in descriptor.items() if value},
        "config": {"format": "onnx"},
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
    }


def _encode(value: object) -> bytes:
    return msgspec.json.encode(value, order="deterministic")


def _place(layer: Descriptor) -> PurePosixPath:
    """Where a layer's file goes, inside the bundle's folder whatever the annotation says."""
    name = layer.annotations.get(_FILE, "")
    place = PurePosixPath(name)
    unsafe = place.is_absolute() or ".." in place.parts or not place.parts
    if unsafe or "\\" in name or "\0" in name or str(place) != name:
        raise StoreError(
            f"layer {layer.digest} names the file {name!r}, which is not a path inside a bundle",
            "do not use this model; export it again or fetch it from a source that you trust",
        )
    return place


def _complete(folder: Path, layers: dict[PurePosixPath, Descriptor]) -> bool:
    return folder.is_dir() and all(
        (folder / place).is_file() and (folder / place).stat().st_size == layer.size
        for place, layer in layers.items()
    )


def _not_a_bundle(digest: str, why: str) -> StoreError:
    return StoreError(
        f"{digest} is not a model's manifest: {why}", "see `yard models` for those there are"
    )
