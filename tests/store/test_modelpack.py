"""A bundle as a ModelPack artifact: what the specifications ask for, and nothing from outside believed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelyard.spec.errors import NotFoundError, StoreError
from modelyard.store import Store
from modelyard.store.files import digest_bytes
from modelyard.store.modelpack import blobs, put_bundle, unpack, whole

UNPACK_FOR_EVER = """
import shutil
from pathlib import Path
from modelyard.store import Store
from modelyard.store.modelpack import unpack
store = Store(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    shutil.rmtree(unpack(store, sys.argv[2]))
"""


def document(store: Store, digest: str) -> Any:
    return json.loads(blobs(store).read(digest))


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_manifest_is_a_model_packs(store: Store, bundle: Callable[..., Path]) -> None:
    """docs/spec.md of modelpack/model-spec, and the OCI image specification's manifest."""
    digest = put_bundle(store, bundle())
    manifest = document(store, digest)
    assert manifest["schemaVersion"] == 2
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    kinds = {
        layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"]
        for layer in manifest["layers"]
    }
    assert kinds == {
        "bundle.json": "application/vnd.cncf.model.weight.config.v1.raw",
        "card.md": "application/vnd.cncf.model.doc.v1.raw",
        "golden.safetensors": "application/vnd.cncf.model.dataset.v1.raw",
        "model.onnx": "application/vnd.cncf.model.weight.v1.raw",
        "samples/0.png": "application/vnd.cncf.model.dataset.v1.raw",
    }
    for part in (manifest["config"], *manifest["layers"]):
        kept = blobs(store).read(part["digest"])
        assert (len(kept), digest_bytes(kept)) == (part["size"], part["digest"])


def test_the_config_is_what_the_schema_allows(store: Store, bundle: Callable[..., Path]) -> None:
    """schema/config-schema.json: three required objects, no other keys."""
    manifest = document(store, put_bundle(store, bundle()))
    config = document(store, manifest["config"]["digest"])
    assert config == {
        "descriptor": {
            "name": "digits",
            "createdAt": "2026-11-24T01:00:00+00:00",
            "description": "Reads one digit.",
            "revision": "sha256:1234",
        },
        "config": {"format": "onnx"},
        "modelfs": {
            "type": "layers",
            "diffIds": [layer["digest"] for layer in manifest["layers"]],
        },
    }


def test_the_digest_depends_on_nothing_but_the_bytes(
    tmp_path: Path, bundle: Callable[..., Path]
) -> None:
    """Another place, another order of writing, other dates and modes."""
    first = bundle()
    second = tmp_path / "elsewhere"
    for name, text in sorted(content(first).items(), reverse=True):
        (second / name).parent.mkdir(parents=True, exist_ok=True)
        (second / name).write_bytes(text)
        (second / name).chmod(0o600)
        os.utime(second / name, (1, 1))
    digests = {put_bundle(Store(tmp_path / f), f_) for f, f_ in (("a", first), ("b", second))}
    assert len(digests) == 1
    (second / "samples" / "0.png").write_text("another picture")
    assert put_bundle(Store(tmp_path / "b"), second) not in digests


def test_unpacking_gives_every_byte_back_and_is_done_once(
    store: Store, bundle: Callable[..., Path]
) -> None:
    folder = bundle()
    digest = put_bundle(store, folder)
    unpacked = unpack(store, digest)
    assert unpacked == store.bundle_folder(digest)
    assert content(unpacked) == content(folder)
    inode = (unpacked / "model.onnx").stat().st_ino
    assert unpack(store, digest) == unpacked
    assert (unpacked / "model.onnx").stat().st_ino == inode


def test_an_incomplete_folder_is_unpacked_again(store: Store, bundle: Callable[..., Path]) -> None:
    folder = bundle()
    digest = put_bundle(store, folder)
    unpacked = unpack(store, digest)
    (unpacked / "samples" / "0.png").unlink()
    assert content(unpack(store, digest)) == content(folder)
    (unpacked / "model.onnx").write_text("short")
    assert content(unpack(store, digest)) == content(folder)


def test_a_damaged_layer_is_not_unpacked(store: Store, bundle: Callable[..., Path]) -> None:
    digest = put_bundle(store, bundle())
    layer = document(store, digest)["layers"][3]["digest"]
    blob = blobs(store).path(layer)
    blob.write_bytes(blob.read_bytes().replace(b"w", b"W", 1))
    with pytest.raises(StoreError, match="is damaged"):
        unpack(store, digest)
    assert not store.bundle_folder(digest).exists()
    assert list((store.root / "cache").iterdir()) == []


@pytest.mark.parametrize("turn", range(5))
def test_a_killed_unpacking_leaves_a_whole_folder_or_none(
    store: Store, bundle: Callable[..., Path], turn: int, kill_in_the_middle: Callable[..., None]
) -> None:
    folder = bundle()
    digest = put_bundle(store, folder)
    kill_in_the_middle(UNPACK_FOR_EVER, store.root, digest, within=0.05)
    assert content(unpack(store, digest)) == content(folder)


def foreign(store: Store, paths: list[str]) -> str:
    """A manifest as someone else may have written it."""
    layer = blobs(store).put_bytes(b"content", "application/vnd.cncf.model.weight.v1.raw")
    described = {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}
    manifest = {
        "schemaVersion": 2,
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": described,
        "layers": [
            described | {"annotations": {"org.cncf.model.filepath": path}} for path in paths
        ],
    }
    return blobs(store).put_bytes(json.dumps(manifest).encode(), "x/y").digest


@pytest.mark.parametrize(
    "path",
    [
        "../escaped",
        "/etc/escaped",
        "a/../../escaped",
        "a\\..\\escaped",
        "",
        ".",
        "a\0b",
        "./a",
        "a//b",
    ],
)
def test_a_file_outside_the_bundle_is_never_written(store: Store, path: str) -> None:
    with pytest.raises(StoreError, match="not a path inside a bundle"):
        unpack(store, foreign(store, ["fine", path]))
    assert not list(store.root.rglob("*escaped*"))


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        (["a", "a"], "two layers have the same file name"),
        (["a", "a/b"], "a is a file and a folder"),
    ],
)
def test_layers_that_overwrite_each_other_are_refused(
    store: Store, paths: list[str], told: str
) -> None:
    with pytest.raises(StoreError, match=told):
        unpack(store, foreign(store, paths))


def test_what_is_not_a_models_manifest_is_refused(store: Store) -> None:
    for text in (b"[]", b"not json", b'{"schemaVersion":2,"config":{},"layers":[]}'):
        digest = blobs(store).put_bytes(text, "x/y").digest
        with pytest.raises(StoreError, match="is not a model's manifest"):
            unpack(store, digest)
    with pytest.raises(NotFoundError):
        unpack(store, digest_bytes(b"nobody"))


def test_a_link_does_not_carry_a_file_in(
    store: Store, bundle: Callable[..., Path], tmp_path: Path
) -> None:
    folder = bundle()
    (tmp_path / "secret").write_text("secret")
    (folder / "samples" / "1.png").symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError, match=r"1\.png is not a plain file"):
        put_bundle(store, folder)


def test_a_folder_without_a_description_is_no_bundle(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a bundle"):
        put_bundle(store, tmp_path)


def test_a_missing_or_shortened_blob_is_noticed(store: Store, bundle: Callable[..., Path]) -> None:
    digest = put_bundle(store, bundle())
    assert whole(store, digest)
    layer = blobs(store).path(document(store, digest)["layers"][3]["digest"])
    layer.write_bytes(b"short")
    assert not whole(store, digest)
    layer.unlink()
    assert not whole(store, digest)
    assert not whole(store, digest_bytes(b"nobody"))
