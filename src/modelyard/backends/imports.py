"""Which files of a project a module imports, read from the text without running anything."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path


def local_names(root: Path) -> frozenset[str]:
    """Top-level module names that ``root`` itself provides: ``x.py``, and folders with Python in them."""
    names = {path.stem for path in root.glob("*.py")}
    names |= {path.parent.name for path in root.glob("*/*.py")}
    # Python's own modules and ours are never taken over by a file that happens to be called like one.
    return frozenset(names - sys.stdlib_module_names - {"modelyard"})


def local_files(root: Path, start: Path) -> set[Path]:
    """``start`` and every file under ``root`` that it imports, directly or through others."""
    found: set[Path] = set()
    waiting = [start, *_packages(root, start.parent)]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        for name in imported_names(root, file):
            waiting.extend(_resolve(root, name))
    return found


def imported_names(root: Path, file: Path) -> Iterator[str]:
    """Absolute dotted names that ``file`` may import; a file that does not parse imports nothing."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = file.parent.relative_to(root).parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)


def _resolve(root: Path, name: str) -> Iterator[Path]:
    """The files that importing the dotted ``name`` runs, as far as they lie in ``root``."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        base = root.joinpath(*parts[:count])
        for file in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
            if parts[count - 1] and file.is_file():
                yield file


def _packages(root: Path, folder: Path) -> Iterator[Path]:
    """The ``__init__.py`` of every package between ``root`` and ``folder``."""
    while folder != root:
        if (folder / "__init__.py").is_file():
            yield folder / "__init__.py"
        folder = folder.parent
