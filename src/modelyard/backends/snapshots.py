"""A training snapshot on disk: each worker writes its share, anyone reads the whole; no pickle.

::

    model.safetensors             weights, named as the framework names them, without ``model.``
    optimizer.safetensors         every other tensor, with its full name
    shard-0.json                  written last: which tensor's piece is in which file, and the files' hashes
    state.json                    the numbers; worker 0's

Of several workers, number 1 of 2 writes ``model-1-of-2.safetensors``, ``optimizer-1-of-2.safetensors``
and ``shard-1.json``. Tensors that are equal on all workers are dealt out; slices are written by who
holds them. Reading puts the pieces together again, for any number of workers and any layout.
"""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from modelyard.backends.average import PREFIX
from modelyard.backends.base import Part, Snapshot
from modelyard.backends.tensors import (
    DTYPES,
    Array,
    damaged,
    dtype_name,
    map_tensors,
    write_tensors,
)
from modelyard.spec.errors import ModelError, from_os_error
from modelyard.spec.records import Record
from modelyard.store.files import digest_bytes, digest_file, write_flushed

WEIGHTS, OPTIMIZER, NUMBERS = "model.safetensors", "optimizer.safetensors", "state.json"
_MODEL = "model."


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """Where a part of a tensor (or all of it) lies."""

    file: str
    dtype: str
    """As in the file: ``F32``, …"""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offset: tuple[int, ...]
    """Of the piece's first element in the whole tensor; its size is in the file."""


class Shard(Record, frozen=True, kw_only=True):
    """``shard-<rank>.json``: what one worker wrote. It is there only when all of that is."""

    rank: int
    size: int
    """Workers that wrote together."""
    files: dict[str, str]
    """File name to ``sha256:…``."""
    tensors: dict[str, Piece]


def shard_name(rank: int) -> str:
    return f"shard-{rank}.json"


def check_fit(own: Mapping[str, tuple[int, ...]], given: Mapping[str, Array], what: str) -> None:
    """Raises ModelError where ``given`` has other names or shapes than ``own``, a model's, naming them."""
    problems = [f"{key} is missing" for key in own.keys() - given.keys()]
    problems += [f"{key} is not in the model" for key in given.keys() - own.keys()]
    problems += [
        f"{key} has shape {given[key].shape}, the model has {shape}"
        for key, shape in own.items()
        if key in given and given[key].shape != shape
    ]
    if problems:
        raise ModelError(
            f"the {what} of the snapshot do not fit this model: {'; '.join(sorted(problems)[:5])}",
            "the model has changed since the checkpoint: start a new run",
        )


def share_of(snapshot: Snapshot, rank: int, size: int) -> Snapshot:
    """What worker ``rank`` of ``size`` writes: its slices, and the whole tensors dealt to it.

    The largest go first, each to the worker with the least so far: all come to the same result.
    """
    whole = [name for name in snapshot.tensors if name not in snapshot.parts]
    whole.sort(key=lambda name: (-snapshot.tensors[name].nbytes, name))
    loads, mine = [0] * size, set(snapshot.parts)
    for name in whole:
        holder = loads.index(min(loads))
        loads[holder] += snapshot.tensors[name].nbytes
        if holder == rank:
            mine.add(name)
    return msgspec.structs.replace(
        snapshot, tensors={name: a for name, a in snapshot.tensors.items() if name in mine}
    )


def write_shard(
    folder: Path,
    share: Snapshot,
    rank: int,
    size: int,
    look: Callable[[str, Array], None] | None = None,
) -> Shard:
    """Write ``share_of(…)`` into ``folder`` (exists), flushed to disk, ``shard-<rank>.json`` last.

    ``look`` sees every part of every tensor before it is written. Raises OSError for a full disk;
    what was written by then is removed again.
    """
    written: list[Path] = []
    files: dict[str, str] = {}
    tensors: dict[str, Piece] = {}
    try:
        for file, names in _files(share, rank, size).items():
            written.append(folder / file)
            arrays = {_key(file, name): share.tensors[name] for name in names}
            full = {_key(file, name): name for name in names}

            def see(key: str, part: Array, full: dict[str, str] = full) -> None:
                if look is not None:
                    look(full[key], part)

            files[file] = write_tensors(folder / file, arrays, see)
            tensors |= {name: _piece(file, name, share) for name in names}
        if rank == 0:
            written.append(folder / NUMBERS)
            numbers = json.dumps(share.numbers, indent=1, sort_keys=True).encode()
            files[NUMBERS] = write_flushed(folder / NUMBERS, [numbers])
        shard = Shard(rank=rank, size=size, files=files, tensors=tensors)
        # Its name is the word that all is there, so it must not be seen half; the folder is flushed
        # by who publishes it.
        written.append(folder / f".{shard_name(rank)}")
        write_flushed(written[-1], [shard.to_json()])
        written[-1].rename(folder / shard_name(rank))
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return shard


def write_snapshot(folder: Path, snapshot: Snapshot) -> dict[str, str]:
    """Write a whole snapshot into ``folder`` (exists) and return the files' names with ``sha256:…``.

    Raises StoreError for a full disk or a missing permission.
    """
    try:
        shard = write_shard(folder, snapshot, 0, 1)
    except OSError as error:
        raise from_os_error(error) from error
    return {**shard.files, shard_name(0): digest_bytes(shard.to_json())}


def read_snapshot(folder: Path, files: dict[str, str] | None = None) -> Snapshot:
    """Read what was written, whole, by however many workers; with ``files`` compare it with its hashes.

    Large tensors are memory-mapped and read-only. Raises StoreError where a file is missing, damaged
    or not the one that was written.
    """
    numbers = _decoded(folder / NUMBERS, files, json.loads)
    return Snapshot(tensors=_tensors(folder, files, ""), numbers=numbers)


def read_weights(folder: Path, files: dict[str, str] | None = None) -> Snapshot:
    """The model's weights alone (``model.*``), which ``Backend.restore`` takes as well.

    Of adapters also the digest of the weights that they were trained on (``base``). Where training kept
    their moving average, that is what they are: it is what was judged.
    """
    numbers = _decoded(folder / NUMBERS, files, json.loads)
    base = {key: value for key, value in numbers.items() if key == "base"}
    averages = {
        _MODEL + name.removeprefix(PREFIX): array
        for name, array in _tensors(folder, files, PREFIX).items()
    }
    return Snapshot(tensors={**_tensors(folder, files, _MODEL), **averages}, numbers=base)


def _files(share: Snapshot, rank: int, size: int) -> dict[str, list[str]]:
    """File to the names of its tensors; a worker alone writes both files, even where one is empty."""
    ending = "" if size == 1 else f"-{rank}-of-{size}"
    chosen: dict[str, list[str]] = {}
    for file, weights in ((WEIGHTS, True), (OPTIMIZER, False)):
        names = [name for name in share.tensors if name.startswith(_MODEL) == weights]
        if names or size == 1:
            chosen[file.replace(".", f"{ending}.", 1)] = names
    return chosen


def _key(file: str, name: str) -> str:
    return name.removeprefix(_MODEL) if file.startswith(_MODEL.rstrip(".")) else name


def _piece(file: str, name: str, share: Snapshot) -> Piece:
    array = share.tensors[name]
    part = share.parts.get(name) or Part(offset=(0,) * array.ndim, shape=array.shape)
    return Piece(file=file, dtype=dtype_name(array), shape=part.shape, offset=part.offset)


def _tensors(folder: Path, files: dict[str, str] | None, prefix: str) -> dict[str, Array]:
    """All tensors whose name begins with ``prefix``; only the files that hold some are read."""
    shards = _shards(folder, files)
    if not shards:
        return _tensors_of_format_1(folder, files, prefix)
    pieces: dict[str, list[Piece]] = {}
    for shard in shards:
        for name, piece in shard.tensors.items():
            if name.startswith(prefix):
                pieces.setdefault(name, []).append(piece)
    needed = {piece.file for found in pieces.values() for piece in found}
    mapped = {file: map_tensors(_checked(folder / file, files)) for file in sorted(needed)}
    return {
        name: _joined(folder, name, [(p, _held(folder, mapped, p, name)) for p in found])
        for name, found in pieces.items()
    }


def _held(folder: Path, mapped: dict[str, dict[str, Array]], piece: Piece, name: str) -> Array:
    array = mapped[piece.file].get(_key(piece.file, name))
    if array is None or array.dtype.str != DTYPES.get(piece.dtype):
        raise damaged(folder / piece.file, f"{name} is not in it as it should be")
    return array


def _joined(folder: Path, name: str, pieces: list[tuple[Piece, Array]]) -> Array:
    """The whole tensor; one that lies in one piece is not copied."""
    shape = pieces[0][0].shape
    if pieces[0][1].shape == shape:
        return pieces[0][1]
    whole = np.empty(shape, pieces[0][1].dtype)
    seen = np.zeros(shape, bool) if _overlap(pieces) else None
    for piece, array in pieces:
        place = tuple(slice(o, o + n) for o, n in zip(piece.offset, array.shape, strict=True))
        if piece.shape != shape or whole[place].shape != array.shape:
            raise damaged(folder / piece.file, f"a piece of {name} does not fit the others")
        whole[place] = array
        if seen is not None:
            seen[place] = True
    held = sum(array.size for _, array in pieces)
    if held < whole.size or (seen is not None and not seen.all()):
        raise damaged(folder / pieces[0][0].file, f"a piece of {name} is missing")
    return whole


def _overlap(pieces: list[tuple[Piece, Array]]) -> bool:
    """Whether counting elements cannot tell that all are there: several workers held the same."""
    count = int(np.prod(pieces[0][0].shape, dtype=np.int64))
    return sum(array.size for _, array in pieces) > count


def _shards(folder: Path, files: dict[str, str] | None) -> list[Shard]:
    """Of all workers that wrote; none for a checkpoint of format 1."""
    known: Collection[str] = files if files is not None else {p.name for p in folder.glob("*.json")}
    names = [name for name in known if name.startswith("shard-")]
    if not names and not (folder / shard_name(0)).exists():
        return []
    first = _decoded(folder / shard_name(0), files, Shard.from_json)
    others = [
        _decoded(folder / shard_name(rank), files, Shard.from_json) for rank in range(1, first.size)
    ]
    return [first, *others]


def _tensors_of_format_1(
    folder: Path, files: dict[str, str] | None, prefix: str
) -> dict[str, Array]:
    """One worker wrote two files, whose names lack ``model.`` and ``optimizer.``."""
    found: dict[str, Array] = {}
    for file, begin in ((WEIGHTS, _MODEL), (OPTIMIZER, "optimizer.")):
        if begin.startswith(prefix):
            mapped = map_tensors(_checked(folder / file, files))
            found |= {begin + name: array for name, array in mapped.items()}
    return found


def _checked(path: Path, files: dict[str, str] | None) -> Path:
    """``path``, once its content is known to be what was written."""
    if files is not None:
        try:
            digest = digest_file(path)
        except FileNotFoundError as error:
            raise damaged(path, "it is missing") from error
        except OSError as error:
            raise from_os_error(error) from error
        if digest != files.get(path.name):
            raise damaged(path, "its content is not what was written (the hash differs)")
    return path


def _decoded(path: Path, files: dict[str, str] | None, decode: Callable[[bytes], Any]) -> Any:
    try:
        return decode(_checked(path, files).read_bytes())
    except FileNotFoundError as error:
        raise damaged(path, "it is missing") from error
    except (ValueError, msgspec.DecodeError) as error:
        raise damaged(path, str(error)) from error
    except OSError as error:
        raise from_os_error(error) from error
