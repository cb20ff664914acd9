"""A training snapshot as three files that need no pickle: weights, the rest of the tensors, numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from modelyard.backends.base import Snapshot
from modelyard.spec.errors import StoreError, from_os_error
from modelyard.store.files import digest_bytes

WEIGHTS, OPTIMIZER, NUMBERS = "model.safetensors", "optimizer.safetensors", "state.json"
_PREFIXES = {WEIGHTS: "model.", OPTIMIZER: "optimizer."}


def write_snapshot(folder: Path, snapshot: Snapshot) -> dict[str, str]:
    """Write the three files into ``folder`` (exists) and return their names with ``sha256:…``.

    Flushing and publishing the folder are the caller's: see ``store.files.new_folder``.
    Raises StoreError for a full disk or a missing permission.
    """
    contents = {
        file: safetensors.numpy.save(_part(snapshot.tensors, prefix))
        for file, prefix in _PREFIXES.items()
    }
    contents[NUMBERS] = json.dumps(snapshot.numbers, indent=1, sort_keys=True).encode()
    try:
        for file, content in contents.items():
            (folder / file).write_bytes(content)
    except OSError as error:
        raise from_os_error(error) from error
    return {file: digest_bytes(content) for file, content in contents.items()}


def read_snapshot(folder: Path, files: dict[str, str] | None = None) -> Snapshot:
    """Read what ``write_snapshot`` wrote; with ``files`` (name to ``sha256:…``) check it as well.

    Raises StoreError where a file is missing, damaged or not the one that was written.
    """
    tensors = {
        prefix + name: array
        for file, prefix in _PREFIXES.items()
        for name, array in _tensors(folder / file, files).items()
    }
    return Snapshot(tensors=tensors, numbers=_numbers(folder / NUMBERS, files))


def read_weights(folder: Path, files: dict[str, str] | None = None) -> Snapshot:
    """The model's weights alone (``model.*``), which ``Backend.restore`` takes as well."""
    weights = _tensors(folder / WEIGHTS, files)
    return Snapshot(tensors={f"model.{name}": array for name, array in weights.items()}, numbers={})


def _part(tensors: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    # np.asarray with order C: a transposed view would be written in its memory's order.
    return {
        name.removeprefix(prefix): np.asarray(array, order="C")
        for name, array in tensors.items()
        if name.startswith(prefix)
    }


def _content(path: Path, files: dict[str, str] | None) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise _damaged(path, "it is missing") from error
    except OSError as error:
        raise from_os_error(error) from error
    if files is not None and digest_bytes(content) != files.get(path.name):
        raise _damaged(path, "its content is not what was written (the hash differs)")
    return content


def _tensors(path: Path, files: dict[str, str] | None) -> dict[str, NDArray[Any]]:
    try:
        loaded: dict[str, NDArray[Any]] = safetensors.numpy.load(_content(path, files))
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error
    return loaded


def _numbers(path: Path, files: dict[str, str] | None) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = json.loads(_content(path, files))
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    return loaded


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(
        f"the checkpoint file {path} is damaged: {why}",
        f"delete the folder {path.parent}; training goes on from an older checkpoint",
    )
