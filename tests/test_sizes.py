"""Small by rule: files of at most 400 lines, functions of at most 60, and a first line that says what for."""

import ast
from pathlib import Path

import pytest

import modelyard

SRC = Path(modelyard.__file__).parent
ROOT = SRC.parent.parent
LINES_PER_FILE = 400
LINES_PER_FUNCTION = 60
METHODS_PER_CONTRACT = 9

Function = ast.FunctionDef | ast.AsyncFunctionDef


def files() -> list[Path]:
    return sorted([*SRC.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def docstring_lines(node: Function | ast.Module) -> int:
    first = node.body[0] if node.body else None
    if ast.get_docstring(node) is None or first is None or first.end_lineno is None:
        return 0
    return first.end_lineno - first.lineno + 1


def long_functions(text: str) -> list[str]:
    """``name (line n): length`` of each function that is too long, its docstring not counted."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1 - docstring_lines(node)
            if length > LINES_PER_FUNCTION:
                found.append(f"{node.name} (line {node.lineno}): {length} lines")
    return found


@pytest.mark.parametrize("file", files(), ids=name_of)
def test_file_is_small(file: Path) -> None:
    lines = len(file.read_text().splitlines())
    assert lines <= LINES_PER_FILE, f"{name_of(file)} has {lines} lines, more than {LINES_PER_FILE}"


@pytest.mark.parametrize("file", files(), ids=name_of)
def test_functions_are_small(file: Path) -> None:
    found = long_functions(file.read_text())
    assert not found, f"{name_of(file)}: {'; '.join(found)}; at most {LINES_PER_FUNCTION}"


@pytest.mark.parametrize("file", files(), ids=name_of)
def test_module_says_what_it_is_for(file: Path) -> None:
    text = ast.get_docstring(ast.parse(file.read_text()))
    assert text, f"{name_of(file)} has no docstring"
    assert len(text.splitlines()[0]) >= 10, f"{name_of(file)}: {text.splitlines()[0]!r}"


@pytest.mark.parametrize("file", sorted(SRC.rglob("base.py")), ids=name_of)
def test_contract_is_small_and_its_duties_are_in_prose(file: Path) -> None:
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            duties = [n for n in node.body if isinstance(n, Function) and _is_abstract(n)]
            assert len(duties) <= METHODS_PER_CONTRACT, (
                f"{name_of(file)}: {node.name} asks for {len(duties)} methods: "
                + ", ".join(duty.name for duty in duties)
            )


def _is_abstract(function: Function) -> bool:
    return any(ast.unparse(item) == "abstractmethod" for item in function.decorator_list)


def test_the_measure_leaves_docstrings_out_and_sees_nested_functions() -> None:
    body = "\n".join(f"    x{i} = {i}" for i in range(LINES_PER_FUNCTION - 1))
    assert long_functions(f"def f():\n    '''a\n    b'''\n{body}") == []
    assert long_functions(f"def f():\n{body}\n    return 1") == ["f (line 1): 61 lines"]
    inner = "\n".join(
        f"    {line}" for line in f"async def g():\n{body}\n    return 1".splitlines()
    )
    assert len(long_functions(f"def f():\n{inner}")) == 2
