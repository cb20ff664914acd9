"""Arrays from the user's own Python: ``source = "module:function"``."""

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.data.digest import code_files
from modelyard.data.place import open_place
from modelyard.data.sources.base import Rows, Schema, Source
from modelyard.data.sources.table import Table
from modelyard.data.sources.whole import finite_rows, label_array, number_array, whole_table
from modelyard.spec.errors import DataError, did_you_mean
from modelyard.spec.records import Finding
from modelyard.spec.urls import is_url, local_path

_RETURNS = (
    'return (inputs, targets), {"inputs": …, "targets": …}, or a dict of columns that holds the target, '
    "as NumPy arrays or lists of equal length"
)


class Arrays(Source):
    """The function is called without arguments, in the project's folder.

    Inputs of numbers with two or more axes are tensors, one a row of axis 0; a dict of columns is a
    table. What the function reads is part of the dataset's identity where ``data.path`` names it.
    """

    def files(self) -> Sequence[Path]:
        if not self.data.path or is_url(local_path(self.data.path)):
            return []
        path = (self.root / Path(local_path(self.data.path)).expanduser()).resolve()
        if not path.exists():
            raise DataError(f"data.path: nothing at {path}", "mend data.path, or leave it out")
        if path.is_file():
            return [path]
        return sorted(file for file in path.rglob("*") if file.is_file())

    def stamps(self) -> Sequence[str]:
        """Of a URL; reading it is the function's own affair."""
        if not is_url(local_path(self.data.path)):
            return ()
        return open_place(self.root, self.data, self.scratch, self.say).stamps()

    def code(self) -> Mapping[str, Path]:
        return code_files(self.root, self._module)

    def schema(self) -> Schema:
        content = self._content[0]
        if isinstance(content, Table):
            return content.schema
        return Schema("tensor", shape=content.shape[1:])

    def __len__(self) -> int:
        return len(self._content[1])

    def targets(self) -> NDArray[np.object_]:
        return self._content[1]

    def rows(self, start: int, stop: int) -> Rows:
        content = self._content[0]
        if isinstance(content, Table):
            return content.rows(start, stop)
        return finite_rows(np.asarray(content[start:stop]))

    def natural(self, row: int) -> tuple[str, bytes]:
        content = self._content[0]
        if isinstance(content, Table):
            return ".json", json.dumps(content.natural(row), ensure_ascii=False).encode()
        return ".json", json.dumps(np.asarray(content[row]).astype(np.float32).tolist()).encode()

    def name(self, row: int) -> str:
        return f"row {row}"

    def findings(self) -> tuple[Finding, ...]:
        content = self._content[0]
        return content.findings if isinstance(content, Table) else ()

    @property
    def _module(self) -> str:
        return self.data.source.partition(":")[0]

    @cached_property
    def _content(self) -> tuple[Table | NDArray[Any], NDArray[np.object_]]:
        inputs, targets = _two_parts(self._call(), self.data.target, self.data.source)
        labels = label_array(targets, self.data.source)
        if isinstance(inputs, Mapping):
            return whole_table(
                inputs, len(labels), self.data, self.data.source, self.scratch
            ), labels
        values = number_array(inputs, self.data.source)
        if len(values) != len(labels):
            raise DataError(
                f"{self.data.source} returned {len(values)} inputs and {len(labels)} targets",
                "return one target for each input",
            )
        return values, labels

    def _call(self) -> Any:
        function = self._function()
        try:
            with contextlib.chdir(self.root):
                return function()
        except DataError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise DataError(
                f"{self.data.source} raised {type(error).__name__}: {error}{_where(error, self.root)}",
                "mend the function; it is called without arguments, in the project's folder",
            ) from error

    def _function(self) -> Callable[[], Any]:
        name = self.data.source.partition(":")[2]
        with importable(self.root, self.code()):
            try:
                module = importlib.import_module(self._module)
            except Exception as error:  # the user's code may raise anything
                raise DataError(
                    f"importing {self._module!r} raised {type(error).__name__}: {error}{_where(error, self.root)}",
                    "mend the module, or install what it needs",
                ) from error
        function = getattr(module, name, None)
        if not callable(function):
            hint = did_you_mean(
                name, [known for known in vars(module) if not known.startswith("_")]
            )
            raise DataError(
                f"{module.__file__} has no function {name!r}{hint}",
                'data.source is written "module:function"',
            )
        return function  # type: ignore[no-any-return]


@contextlib.contextmanager
def importable(root: Path, modules: Mapping[str, Path]) -> Iterator[None]:
    """Let ``modules`` be imported from ``root``, as they are on disk now.

    Another project in the same process may have had modules of the same names: those are forgotten.
    """
    for name in modules:
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))


def _two_parts(result: Any, target: str, source: str) -> tuple[Any, Any]:
    """Inputs and targets from any of the accepted forms."""
    if isinstance(result, Mapping):
        if set(result) == {"inputs", "targets"}:
            return result["inputs"], result["targets"]
        if target not in result:
            hint = did_you_mean(target, [str(name) for name in result])
            raise DataError(
                f"{source} returned no target column {target!r}{hint}",
                f"set data.target to one of {', '.join(map(str, result))}",
            )
        return {name: values for name, values in result.items() if name != target}, result[target]
    if isinstance(result, tuple | list) and len(result) == 2:
        return result[0], result[1]
    raise DataError(f"{source} returned {type(result).__name__}", _RETURNS)


def _where(error: BaseException, root: Path) -> str:
    """`` (file, line n)`` of the innermost frame in the project."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if file.startswith(f"{root}{os.sep}"):
            place = f" ({Path(file).relative_to(root)}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place
