"""The user's model code: what it is given, what is told of its mistakes, and when it counts as changed.

The projects here return plain objects: nothing of this needs a framework.
"""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from modelyard.backends.source import build_model, code_digest, framework_of
from modelyard.spec.errors import ModelError
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import Signature, Tensor

TASK = TaskSpec(type="classification", target="y", loss="cross-entropy", classes=("a", "b"))
SIGNATURE = Signature(
    inputs=(Tensor(name="input", dtype="float32", shape=(None, 3, 8, 8)),),
    outputs=(Tensor(name="scores", dtype="float32", shape=(None, 2)),),
)


def project(folder: Path, **files: str) -> Path:
    """A project folder; ``model="…"`` becomes model.py, ``parts__blocks="…"`` parts/blocks.py."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/', 1)}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def build(root: Path, name: str = "model:build", **args: Any) -> Any:
    return build_model(root, name, args, SIGNATURE, TASK)


def refusal(root: Path, name: str = "model:build", **args: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        build(root, name, **args)
    assert "Traceback" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        ("def build(): return 'nothing'", "nothing"),
        ("def build(outputs): return outputs", 2),
        ("def build(*, input_shape, classes=()): return input_shape, classes", ((3, 8, 8), ("a", "b"))),
        ("def build(**given): return sorted(given)", ["classes", "input_shape", "outputs", "width"]),
        ("def build(width, outputs=9): return width, outputs", (4, 2)),
        ("class build:\n  def __init__(self, width): self.width = width\n  def __eq__(self, o): return o == self.width", 4),
    ],
)  # fmt: skip
def test_the_function_gets_what_it_declares(
    definition: str, expected: object, tmp_path: Path
) -> None:
    args = {"width": 4} if "width" in definition or "**" in definition else {}
    assert build(project(tmp_path, model=definition), **args) == expected


def test_a_function_in_a_package_may_import_its_neighbours(tmp_path: Path) -> None:
    root = project(
        tmp_path,
        nets__model="from . import blocks\nfrom nets.blocks import SIZE\nimport top\n"
        "def build(): import late; return blocks.SIZE, SIZE, top.NAME, late.NAME",
        nets__blocks="SIZE = 3",
        top="NAME = 'top'",
        late="NAME = 'late'",
        nets____init__="",
    )
    assert build(root, "nets.model:build") == (3, 3, "top", "late")


def test_two_projects_with_the_same_file_names_do_not_meet(tmp_path: Path) -> None:
    for name in ("one", "two"):
        project(
            tmp_path / name, model="import parts\ndef build(): return parts.NAME", parts=f"NAME = '{name}'"
        )  # fmt: skip
    before, path = dict(sys.modules), list(sys.path)
    assert [build(tmp_path / name) for name in ("one", "two", "one")] == ["one", "two", "one"]
    assert not {"model", "parts"} & sys.modules.keys()
    assert sys.path == path and before.items() <= sys.modules.items()


def test_an_edited_file_is_seen_at_once_and_no_bytecode_is_left(tmp_path: Path) -> None:
    """Same length and same second: what cached bytecode would not notice."""
    root = project(tmp_path, model="import parts\ndef build(): return parts.N", parts="N = 1")
    times = [os.stat(root / "parts.py").st_mtime_ns] * 2
    assert build(root) == 1
    project(root, parts="N = 2")
    os.utime(root / "parts.py", ns=(times[0], times[1]))
    assert build(root) == 2
    assert not (root / "__pycache__").exists()


@pytest.mark.parametrize(
    ("name", "model", "args", "what", "mend"),
    [
        ("mlpp", "", {}, "did you mean 'mlp'?", "one of: cnn, fusion, mlp"),
        ("modle:build", "", {}, "did you mean 'model:build'?", "make that file"),
        ("model:biuld", "def build(): ...", {}, "did you mean 'build'?", "it has: build"),
        ("model:net", "net = 3", {}, "is a int, not a function", "def build(): return net"),
        ("model:build", "def build(outputs, width=1): ...", {"widht": 3}, "did you mean 'width'?", "it takes: outputs, width"),
        ("model:build", "\ndef build(depth): ...", {}, "model.py:2) needs 'depth'", "model.args"),
        ("model:build", "x = 1\nif True print", {}, "model.py:2: ", "syntax"),
        ("model:build", "import nosuch", {}, "model.py:1: no module named 'nosuch'", "install"),
        ("model:build", "\n\n1 / 0", {}, "model.py:3: ZeroDivisionError while importing model.py", "mend"),
        ("model:build", "import sys\nsys.exit(3)", {}, "model.py:2: SystemExit", "importable"),
        ("model:build", "def build():\n  return int('x')", {}, "model.py:2: ValueError while building the model", "model.args"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place(
    name: str, model: str, args: dict[str, Any], what: str, mend: str, tmp_path: Path
) -> None:
    error = refusal(project(tmp_path, model=model), name, **args)
    assert what in error.what and mend in error.mend


def test_a_mistake_in_an_imported_file_is_told_with_that_file(tmp_path: Path) -> None:
    root = project(
        tmp_path, model="import parts\ndef build(): return parts.f()", parts="def f():\n  raise KeyError('k')"
    )  # fmt: skip
    assert f"{root / 'parts.py'}:2: KeyError" in refusal(root).what


def test_a_built_in_refuses_wrong_arguments_and_shapes() -> None:
    assert "did you mean 'hidden'?" in refusal(Path(), "mlp", hiden=[3]).what
    assert framework_of(Path(), "mlp", {}, SIGNATURE, TASK) == "pytorch"


def test_the_framework_is_recognised_from_what_the_function_returns(tmp_path: Path) -> None:
    text = "from torch import nn\ndef build(outputs): return nn.Linear(4, outputs)"
    root = project(tmp_path, model=text)
    assert framework_of(root, "model:build", {}, SIGNATURE, TASK) == "pytorch"
    project(root, model="def build(): return {}")
    with pytest.raises(ModelError, match=r"builtins\.dict, which no backend knows"):
        framework_of(root, "model:build", {}, SIGNATURE, TASK)


def test_the_digest_follows_the_code_that_is_imported_and_nothing_else(tmp_path: Path) -> None:
    root = project(
        tmp_path,
        model="import numpy\nfrom nets import wide\ndef build(): ...",
        nets____init__="",
        nets__wide="from .deep import DEPTH",
        nets__deep="DEPTH = 1",
        other="UNUSED = 1",
    )
    first = code_digest(root, "model:build")
    os.utime(root / "model.py", (0, 0))
    project(root, other="UNUSED = 2")
    assert code_digest(root, "model:build") == first
    seen = {first}
    for change in (
        {"nets__deep": "DEPTH = 2"},
        {"nets__wide": "\nfrom .deep import DEPTH"},
        {"nets____init__": "X = 1"},
    ):
        project(root, **change)
        seen.add(code_digest(root, "model:build"))
    assert len(seen | {code_digest(root, "model:another")}) == 5


def test_the_digest_is_of_the_code_not_of_its_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        project(tmp_path / name, model="def build(): ...")
    assert code_digest(tmp_path / "one", "model:build") == code_digest(tmp_path / "two", "model:build")  # fmt: skip
    assert code_digest(tmp_path, "mlp") != code_digest(tmp_path, "cnn-small")


def test_a_file_that_does_not_parse_still_has_a_digest(tmp_path: Path) -> None:
    """So that ``yard up --dry-run`` works; building it tells the mistake."""
    assert code_digest(project(tmp_path, model="def ("), "model:build").startswith("sha256:")
