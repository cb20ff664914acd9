"""The house stands on its floors: imports point down only, and siblings never see each other.

The floors are those of docs/architecture.md, section 3. Imports inside functions count as well.
"""

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import modelyard

SRC = Path(modelyard.__file__).parent
ROOT = SRC.parent.parent
FLOORS = {
    "cli": 9,
    "console": 9,
    "preflight": 8,
    "inquiry": 8,
    "flow": 7,
    "way": 6,
    "training": 5,
    "serving": 5,
    "deployment": 5,
    "monitoring": 5,
    "templates": 5,
    "bundle": 4,
    "data": 3,
    "backends": 3,
    "engines": 3,
    "store": 2,
    "tasks": 2,
    "spec": 1,
}
FRAMEWORKS = {
    "torch": ("pytorch", "keras_torch"),
    "tensorflow": ("keras",),
    "keras": ("keras",),
    "jax": ("jax", "keras_jax"),
    "flax": ("jax",),
}
"""Framework to the beginnings of the file names in backends/ that may import it; Keras stands on each of the others."""


@dataclass(frozen=True)
class Import:
    """One import of one module."""

    line: int
    module: str
    type_only: bool
    at_top: bool


def imports(text: str) -> Iterator[Import]:
    """Every import in a source text, those in functions and in ``import_module("…")`` included."""
    tree = ast.parse(text)
    type_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    inside = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        for module in _modules(node):
            yield Import(node.lineno, module, id(node) in type_only, id(node) not in inside)


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: write the whole name, not a relative import"
        assert node.module is not None
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
        "import_module",
        "__import__",
    ):
        first = node.args[0] if node.args else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            return [first.value]
    return []


def unit(module: str) -> str:
    """The part of the house that ``module`` belongs to: ``modelyard.data.sources.csv`` is ``data``."""
    parts = module.split(".")
    if parts[0] != "modelyard" or len(parts) < 2:
        return ""
    if parts[1] in modelyard._VERBS:  # `from modelyard import train` reaches into the flow
        parts = modelyard._VERBS[parts[1]].split(".")
    return parts[1] if not parts[1].startswith("__") else ""


def breaks(owner: str, text: str, *, type_only: bool) -> list[str]:
    """What in ``text``, a file of the unit ``owner``, points up or sideways."""
    found = []
    for item in imports(text):
        other = unit(item.module)
        if not other or other == owner or item.type_only is not type_only:
            continue
        if other not in FLOORS:
            found.append(f"line {item.line}: {item.module} is on no floor")
        elif FLOORS[other] >= FLOORS[owner]:
            way = "up to" if FLOORS[other] > FLOORS[owner] else "sideways to"
            found.append(
                f"line {item.line}: {owner} (floor {FLOORS[owner]}) reaches {way} {item.module} (floor {FLOORS[other]})"
            )
    return found


def name_of(file: Path) -> str:
    return file.relative_to(SRC).as_posix()


def files() -> list[Path]:
    """The program's own files; what lies in templates/files belongs to the user."""
    return [p for p in sorted(SRC.rglob("*.py")) if "templates/files" not in p.as_posix()]


def owned() -> list[Path]:
    return [file for file in files() if file != SRC / "__init__.py"]


def owner_of(file: Path) -> str:
    return file.relative_to(SRC).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", owned(), ids=name_of)
def test_every_file_is_on_a_floor(file: Path) -> None:
    assert owner_of(file) in FLOORS, (
        f"{name_of(file)}: give {owner_of(file)!r} a floor in docs/architecture.md and here"
    )


@pytest.mark.parametrize("file", owned(), ids=name_of)
def test_imports_point_down_only(file: Path) -> None:
    found = breaks(owner_of(file), file.read_text(), type_only=False)
    assert not found, f"{name_of(file)}: " + "; ".join(found)


@pytest.mark.parametrize("file", owned(), ids=name_of)
def test_imports_for_type_checking_point_down_too(file: Path) -> None:
    """They cost nothing at run time, but whoever reads the file still has to know the other one."""
    found = breaks(owner_of(file), file.read_text(), type_only=True)
    assert not found, f"{name_of(file)}: " + "; ".join(found)


@pytest.mark.parametrize("file", files(), ids=name_of)
def test_frameworks_are_imported_by_their_backend_only(file: Path) -> None:
    name = name_of(file)
    found = [
        f"line {item.line}: {item.module}"
        for item in imports(file.read_text())
        if (prefixes := FRAMEWORKS.get(item.module.split(".")[0]))
        and not name.replace("/families/", "/").startswith(
            tuple(f"backends/{prefix}" for prefix in prefixes)
        )
    ]
    assert not found, f"{name} imports a framework: " + "; ".join(found)


def test_the_package_itself_imports_nothing_of_its_own_at_run_time() -> None:
    found = [
        item
        for item in imports((SRC / "__init__.py").read_text())
        if unit(item.module) and not item.type_only
    ]
    assert found == []


def test_no_two_modules_import_each_other_in_a_ring() -> None:
    """Over imports at the top of modules; a ring there works or fails by the order of loading."""
    known = {
        "modelyard."
        + name_of(file).removesuffix("/__init__.py").removesuffix(".py").replace("/", "."): file
        for file in owned()
    }
    arrows = {
        module: {
            target
            for item in imports(file.read_text())
            if item.at_top and not item.type_only
            for target in (item.module, item.module.rpartition(".")[0])
            if target in known and target != module and not module.startswith(f"{target}.")
        }
        for module, file in known.items()
    }
    assert _ring(arrows) == []


def _ring(arrows: dict[str, set[str]]) -> list[str]:
    """Some ring of modules, or an empty list: take away what imports nothing until nothing changes."""
    left = {module: set(targets) for module, targets in arrows.items()}
    while free := [module for module, targets in left.items() if not targets & left.keys()]:
        for module in free:
            del left[module]
    return sorted(left)


def test_every_package_that_is_imported_is_declared() -> None:
    """In pyproject.toml, as a dependency or in an extra other than dev."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra, needs in project["optional-dependencies"].items():
        lines += needs if extra != "dev" else ["pytest"]  # contract.py files are tests
    declared = {_bare(line) for line in lines}
    providers = packages_distributions()
    found = set()
    for file in files():
        for item in imports(file.read_text()):
            top = item.module.split(".")[0]
            names = {_bare(name) for name in providers.get(top, [])}
            if names and "modelyard" not in names and not names & declared:
                found.add(f"{name_of(file)}: {top}")
    assert not found, sorted(found)


def _bare(requirement: str) -> str:
    end = next(
        (i for i, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), len(requirement)
    )
    return requirement[:end].lower().replace("_", "-")


@pytest.mark.parametrize(
    ("owner", "text", "expected"),
    [
        ("store", "import modelyard.cli.new", "up to"),
        ("training", "def f():\n    from modelyard.serving import plane", "sideways to"),
        ("data", "from modelyard import tasks, backends", "sideways to modelyard.backends"),
        ("bundle", "from modelyard import train", "up to modelyard.train"),
        ("spec", "from importlib import import_module\nimport_module('modelyard.store')", "up to"),
        ("cli", "import modelyard.drawer", "on no floor"),
    ],
)
def test_the_scanner_sees_a_broken_floor(owner: str, text: str, expected: str) -> None:
    assert expected in " ".join(breaks(owner, text, type_only=False))


def test_the_scanner_lets_good_imports_pass_and_tells_type_only_ones() -> None:
    good = "from modelyard import __version__\nimport torch\nfrom modelyard.spec.errors import X"
    assert breaks("training", good, type_only=False) == []
    typed = "if TYPE_CHECKING:\n    from modelyard.cli import x"
    assert breaks("spec", typed, type_only=False) == []
    assert len(breaks("spec", typed, type_only=True)) == 1


def test_the_scanner_sees_a_ring() -> None:
    assert _ring({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    assert _ring({"a": {"b"}, "b": {"c"}, "c": set()}) == []
