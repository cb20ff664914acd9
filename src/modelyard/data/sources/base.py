"""What a source must do: say what it holds, and give it in slices.

A source reads what the user has, as it is; it does not split, scale or shuffle. Its duties:

- The constructor takes the project's folder and its ``[data]`` section, and is cheap.
- ``files`` lists every file whose bytes make the content, in a stable order, without reading them:
  the dataset's identity is computed from it. ``code`` lists the user's modules that load it.
- ``schema`` reads as much as it must to know what a sample is.
- ``rows`` gives samples ``start`` to ``stop`` in *raw form*, one array (or one a column) for all of
  them; a sample that cannot be read is marked, not raised, so that one run names them all.
- ``targets`` gives the target of every row as it stands in the data, ``None`` where it is missing.
- ``natural`` gives one sample as a caller of the service would send it: encoding it must give the
  same bits as the raw form does.
- ``name`` says where a row stands, for messages: ``line 17``, ``3/cat.png``.
- ``findings`` is what the source noticed itself (columns left out, files passed over).
- ``lost`` (not asked of all) tells which rows are known to be unreadable before ``rows`` is called,
  because their targets cannot be read either: lines that are no record, a damaged part of a shard.
- A source of a URL has no ``files``; its ``stamps`` say what the content is without fetching it.

Whatever is wrong with the data is a DataError that names the place and the mend; OSErrors of the
user's files too. Every method gives the same answer when it is called again, and ``rows`` gives
the same samples however they are sliced. Third parties prove theirs with
``modelyard.data.sources.contract``.
"""

import math
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from modelyard.spec.errors import DataError
from modelyard.spec.project import DataSection
from modelyard.spec.records import Finding
from modelyard.spec.signature import ImageInput
from modelyard.spec.urls import local_path

_EXAMPLES = 5
_DIGITS = re.compile(r"([0-9]+)")
ColumnKind = Literal["numeric", "categorical", "boolean"]


@dataclass(frozen=True)
class ColumnSchema:
    """A column that the model gets."""

    name: str
    kind: ColumnKind
    words: tuple[str, ...] = ()
    """categorical: the words that occur; raw form holds their numbers."""


@dataclass(frozen=True)
class Schema:
    """What a sample is."""

    kind: Literal["image", "table", "tensor", "text", "mixed"]
    shape: tuple[int, ...] = ()
    """image: (channels, height, width) after resizing; tensor: the sample's shape; all others: empty."""
    columns: tuple[ColumnSchema, ...] = ()
    image: str = ""
    """mixed: the column of pictures, or none."""
    text: str = ""
    """mixed: the column of texts, or none."""


@dataclass(frozen=True)
class Rows:
    """A slice of the source in raw form."""

    values: NDArray[Any] | dict[str, NDArray[Any]]
    """image: uint8 (n, *shape); tensor: float32 (n, *shape); table: for each column float64 (n,)
    with NaN where it is missing (boolean: 1, 0), categorical int32 (n,) with -1; text: objects (n,), str;
    mixed: for each column as in a table, texts as objects, and of pictures the paths of their files."""
    unreadable: dict[int, str] = field(default_factory=dict)
    """Place in this slice -> why it cannot be read; its values are zeros."""


@dataclass(frozen=True)
class Lost:
    """Rows ``start`` to ``stop`` cannot be read, target included."""

    start: int
    stop: int
    why: str

    def __len__(self) -> int:
        return self.stop - self.start


class Source(ABC):
    """The contract; one file per kind of source in this folder."""

    scratch: Path = Path(tempfile.gettempdir())
    """Where temporary files and copies of remote ones may lie; in a project, its store's cache."""

    say: Callable[[str], None] = staticmethod(lambda _message: None)
    """Progress, for sources that fetch; whoever prepares puts its own way of telling here."""

    def __init__(self, root: Path, data: DataSection) -> None:
        self.root = root
        self.data = data

    @abstractmethod
    def files(self) -> Sequence[Path]: ...

    @abstractmethod
    def code(self) -> Mapping[str, Path]:
        """Module name -> file of the user's loading code; empty where there is none."""

    @abstractmethod
    def schema(self) -> Schema: ...

    @abstractmethod
    def __len__(self) -> int:
        """How many rows there are, readable or not."""

    @abstractmethod
    def targets(self) -> NDArray[Any]:
        """(n,) objects: str, int, float, or None where the label is missing."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> Rows: ...

    @abstractmethod
    def natural(self, row: int) -> tuple[str, bytes]:
        """File suffix and content: an image file, or the JSON of a row or of nested lists."""

    @abstractmethod
    def name(self, row: int) -> str: ...

    @abstractmethod
    def findings(self) -> tuple[Finding, ...]: ...

    def lost(self) -> tuple[Lost, ...]:
        """In order, without overlaps; none in most sources."""
        return ()

    def stamps(self) -> Sequence[str]:
        """What remote files are, as their store tells: name, size and version of each."""
        return ()


def located(root: Path, data: DataSection, *, folder: bool | None) -> Path:
    """``data.path`` as an absolute path that exists and is a folder or a file (None: either).

    Raises DataError.
    """
    wanted = {True: "folder", False: "file", None: "file or folder"}[folder]
    if not data.path:
        raise DataError(
            f"data.path is not set; the source {data.source!r} needs a {wanted}",
            "set it in [data], relative to the project file",
        )
    path = (root / Path(local_path(data.path)).expanduser()).resolve()
    if not path.exists():
        raise DataError(
            f"data.path: no {wanted} at {path}",
            "mend data.path; it is relative to the project file",
        )
    if folder is not None and path.is_dir() != folder:
        raise DataError(
            f"data.path: {path} is a {'file' if folder else 'folder'}; the source {data.source!r} needs a {wanted}",
            "mend data.path or data.source",
        )
    return path


def unfitted_image(data: DataSection) -> ImageInput:
    """All that decoding needs; mean and std are fitted later."""
    height, width = data.size
    channels = 3 if data.color == "rgb" else 1
    return ImageInput(
        height=height,
        width=width,
        color=data.color,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
    )


def natural_order(text: str) -> list[tuple[int, int, str]]:
    """Sort key in which ``2`` comes before ``10``, in names as well: ``x2`` before ``x10``."""
    parts = _DIGITS.split(text)  # every second part is digits
    return [
        (0, int(part), part) if place % 2 else (1, 0, part)
        for place, part in enumerate(parts)
        if part
    ]


def object_array(values: Sequence[Any]) -> NDArray[np.object_]:
    """A flat array of objects, also where the values are lists."""
    result = np.empty(len(values), dtype=object)
    result[:] = values
    return result


def refuse_too_many(
    lost: Sequence[Lost], total: int, limit: float, name: Callable[[int], str], mend: str
) -> None:
    """Raise DataError where more than the share ``limit`` of ``total`` rows is lost, naming some."""
    count = sum(map(len, lost))
    if count <= limit * total:
        return
    share = min(0.99, math.ceil(count / total * 100) / 100)
    raise DataError(
        f"{count} of {total} samples cannot be read: {'; '.join(told(lost, name))}"
        f"{' …' if len(lost) > _EXAMPLES else ''}",
        f"{mend}, or accept that they are left out: data.max_unreadable = {share:g}",
    )


def told(lost: Sequence[Lost], name: Callable[[int], str]) -> list[str]:
    """The first few, each with its place and why."""
    return [
        name(one.start) + (f" to {name(one.stop - 1)}" if len(one) > 1 else "") + f": {one.why}"
        for one in lost[:_EXAMPLES]
    ]
