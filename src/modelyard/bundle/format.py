"""The bundle's format, version 1: which files it holds and what ``bundle.json`` says of them.

::

    bundle.json           BundleManifest: everything a service must know
    model.onnx            the model, with a dynamic batch axis
    golden.safetensors    ``inputs`` (n, *shape) and ``outputs`` (n, output_size), float32, n <= 8:
                          what the *framework* answered at export
    samples/0.png, …      the same n samples as natural input (0.json for a table's row or a tensor)
    card.md               the model card

Old versions of the format stay readable for ever.
"""

from pathlib import Path
from typing import Any

import msgspec

from modelyard.spec.errors import StoreError
from modelyard.spec.records import Parity, Record, TaskSpec
from modelyard.spec.signature import NaturalInput, Signature

FORMAT_VERSION = 1
MANIFEST, MODEL, GOLDEN, SAMPLES, CARD = (
    "bundle.json",
    "model.onnx",
    "golden.safetensors",
    "samples",
    "card.md",
)


class Sample(Record, frozen=True, kw_only=True):
    """One natural input that travels with the bundle, and the answer that was recorded for it."""

    file: str
    """Path in the bundle, e.g. ``samples/0.png``."""
    truth: str
    """The true label or value."""
    answer: dict[str, Any]
    """What the framework's model says, decoded by the task."""


class BundleManifest(Record, frozen=True, kw_only=True):
    """``bundle.json``."""

    format_version: int = FORMAT_VERSION
    name: str
    description: str = ""
    created: str
    framework: str
    """Name and version of what it was trained with."""
    runtime: str = "onnxruntime"
    signature: Signature
    input: NaturalInput
    task: TaskSpec
    parity: Parity
    samples: tuple[Sample, ...]
    metrics: dict[str, float]
    lineage: dict[str, str]
    """``run``, ``dataset``, ``code``, … to their ids and digests."""
    environment: dict[str, str] = {}
    """Package name to version, as it was exported."""


def read_manifest(folder: Path) -> BundleManifest:
    """Read ``bundle.json`` of an unpacked bundle. Raises StoreError where it is missing, damaged or too new."""
    path = folder / MANIFEST
    try:
        manifest = BundleManifest.from_json(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(
            f"{folder} holds no readable bundle: {error}", "export it again with `yard up`"
        ) from error
    if manifest.format_version > FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {manifest.format_version}; this Modelyard reads up to {FORMAT_VERSION}",
            "pip install --upgrade modelyard",
        )
    return manifest
