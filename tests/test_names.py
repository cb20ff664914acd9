"""Names that say something, seams with their three files, and constructs that never appear in the source."""

import ast
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import modelyard
from modelyard.spec.plugins import Plugin

SRC = Path(modelyard.__file__).parent
ROOT = SRC.parent.parent
DRAWERS = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc", "core"}
SEAMS = [
    "backends",
    "data/sources",
    "deployment/targets",
    "engines",
    "serving/protocols",
    "serving/runtime",
    "tasks",
]
TABLES = [*SEAMS, "templates"]
GROUPS = {
    "backends",
    "engines",
    "protocols",
    "runtimes",
    "sources",
    "targets",
    "tasks",
    "templates",
}
"""What follows ``modelyard.`` in the entry-point groups: public, since other packages write it."""
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NEVER_KEYWORDS = {("allow_pickle", True), ("weights_only", False), ("shell", True)}
NEVER_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}


def files() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(SRC).as_posix()


def dangers(text: str) -> list[str]:
    """Each construct in ``text`` that can run what a file or a user says."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = [module] if module else [alias.name for alias in node.names]
            found += [f"line {node.lineno}: {n}" for n in names if n.split(".")[0] in PICKLES]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {
                (k.arg, k.value.value) for k in node.keywords if isinstance(k.value, ast.Constant)
            }
            if called in NEVER_CALLS:
                found.append(f"line {node.lineno}: {called}(…)")
            if called == "torch.load" and ("weights_only", True) not in keywords:
                found.append(f"line {node.lineno}: torch.load without weights_only=True")
            found += [
                f"line {node.lineno}: {name}={value}" for name, value in keywords & NEVER_KEYWORDS
            ]
    return found


@pytest.mark.parametrize("file", files(), ids=name_of)
def test_no_file_is_a_drawer(file: Path) -> None:
    parts = {part.removesuffix(".py") for part in file.relative_to(SRC).parts}
    assert not parts & DRAWERS, f"{name_of(file)}: say what is in it"


@pytest.mark.parametrize("file", files(), ids=name_of)
def test_nothing_runs_what_a_file_says(file: Path) -> None:
    assert dangers(file.read_text()) == [], name_of(file)


@pytest.mark.parametrize("seam", SEAMS)
def test_seam_has_its_three_files(seam: str) -> None:
    """The table, the contract, and the tests that prove an implementation, for third parties as well."""
    fixed = ("__init__.py", "base.py", "contract.py")
    assert [name for name in fixed if not (SRC / seam / name).exists()] == []


@pytest.mark.parametrize("seam", TABLES)
def test_every_line_of_a_table_leads_to_an_implementation_of_its_own(seam: str) -> None:
    """Found without importing it, so that this holds where the extra is not installed."""
    package = "modelyard." + seam.replace("/", ".")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    table: dict[str, Plugin] = import_module(package).BUILT_IN
    assert table, f"{package}.BUILT_IN is empty"
    for name, plugin in table.items():
        module, _, attribute = plugin.target.partition(":")
        assert module.rpartition(".")[0] == package, f"{name}: {plugin.target} is not in {package}"
        file = SRC / seam / f"{module.rpartition('.')[2]}.py"
        assert file.exists(), f"{name}: there is no {name_of(file)}"
        tops = {getattr(node, "name", "") for node in ast.parse(file.read_text()).body}
        assert attribute in tops, f"{name}: {name_of(file)} defines no {attribute}"
        assert plugin.summary, f"{name} says nothing of itself"
        assert not plugin.extra or plugin.extra in extras, f"{name}: no extra {plugin.extra!r}"


def test_each_table_has_one_name_everywhere() -> None:
    """Two names for one table would be two groups: a package that adds to one is not found in the other."""
    used = {
        (call.args[0].value, name_of(file))
        for file in files()
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) in ("load", "load_plugin", "table")
        and call.args
        and isinstance(call.args[0], ast.Constant)
    }
    assert sorted((name, file) for name, file in used if name not in GROUPS) == []
    assert {name for name, _ in used} == GROUPS


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import dump",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "subprocess.run('ls', shell=True)",
        "eval(text)",
        "os.system('ls')",
    ],
)
def test_the_scanner_sees_dangers(text: str) -> None:
    assert dangers(text)


def test_the_scanner_lets_harmless_code_pass() -> None:
    good = "torch.load(p, weights_only=True); np.load(p, allow_pickle=False); model.eval(); run(['ls'])"
    assert dangers(good) == []
