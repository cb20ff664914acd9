"""The bundle's format: what a reader accepts, and that nothing in it can run code."""

import json
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import pytest

from modelyard.bundle.format import FORMAT_VERSION, BundleManifest, read_manifest
from modelyard.spec.errors import StoreError
from modelyard.spec.records import Bundle
from modelyard.store import registry


@pytest.fixture(scope="module")
def folder(digits: Any, exported: Bundle) -> Path:
    unpacked: Path = registry.unpack(digits.store, exported.digest)
    return unpacked


def pickles_in(content: bytes) -> list[int]:
    """Where in ``content`` a pickle of protocol 2 or later starts and runs to its end."""
    found = []
    place = content.find(b"\x80")
    while place >= 0:
        if content[place + 1 : place + 2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
            try:
                operations = list(pickletools.genops(content[place:]))
            except (ValueError, IndexError, AttributeError, EOFError):  # it is no pickle
                operations = []
            # Two operations, a protocol and a stop, come about by chance in weights.
            if len(operations) > 3:
                found.append(place)
        place = content.find(b"\x80", place + 1)
    return found


def test_the_scanner_finds_a_pickle(tmp_path: Path) -> None:
    import pickle

    import torch

    assert pickles_in(b"padding" + pickle.dumps({"a": [1, 2]}) + b"more")
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pt")
    assert zipfile.is_zipfile(tmp_path / "x.pt")


def test_no_file_of_a_bundle_is_or_holds_a_pickle(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 12
    for file in files:
        assert not zipfile.is_zipfile(file), file.name
        assert pickles_in(file.read_bytes()) == [], file.name
        assert file.suffix in {".json", ".onnx", ".safetensors", ".png", ".md"}


def test_the_manifest_comes_back_as_it_was(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert BundleManifest.from_json(manifest.to_json()) == manifest
    assert json.loads((folder / "bundle.json").read_text())["format_version"] == FORMAT_VERSION


def test_a_bundle_of_a_later_format_is_refused_with_the_mend(folder: Path, tmp_path: Path) -> None:
    described = json.loads((folder / "bundle.json").read_text())
    described["format_version"] = FORMAT_VERSION + 1
    (tmp_path / "bundle.json").write_text(json.dumps(described))
    with pytest.raises(
        StoreError, match="format version 2; this Modelyard reads up to 1"
    ) as caught:
        read_manifest(tmp_path)
    assert "upgrade" in caught.value.mend


def test_fields_that_a_later_version_added_are_ignored(folder: Path, tmp_path: Path) -> None:
    described = json.loads((folder / "bundle.json").read_text()) | {"licence": "Apache-2.0"}
    (tmp_path / "bundle.json").write_text(json.dumps(described))
    assert read_manifest(tmp_path).name == "digits"
