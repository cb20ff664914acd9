"""Digests: of files (read once while unchanged), of the user's code, of samples."""

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from modelyard.data import digest
from modelyard.data.digest import (
    _stamp,
    code_digest,
    code_files,
    digest_texts,
    digest_values,
    file_digests,
)
from modelyard.spec.errors import DataError, StoreError

OLD = time.time() - 3600


def write(path: Path, content: str, modified: float = OLD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (modified, modified))
    return path


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch) -> None:
    files = [write(tmp_path / "d" / str(i), f"content {i}") for i in range(50)]
    ledger = tmp_path / "ledger.sqlite"
    stamps = {file: _stamp(file) for file in files}
    time.sleep(0.2)  # what changed a moment ago is read again
    first = file_digests(files, ledger)
    assert len(set(first)) == 50
    for file in files:  # if one were opened, it would not be found
        file.unlink()
    monkeypatch.setattr(digest, "_stamp", stamps.__getitem__)
    assert file_digests(files, ledger) == first


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file, ledger = write(tmp_path / "a", "one"), tmp_path / "ledger.sqlite"
    before = file_digests([file], ledger)
    assert file_digests([write(file, "two", OLD + 1)], ledger) != before
    replaced = write(tmp_path / "b", "six", OLD + 1)  # same size and time, another inode
    replaced.rename(file)
    assert file_digests([file], ledger) not in (before, [])
    assert file_digests([file], ledger) == file_digests([write(tmp_path / "c", "six")], ledger)


def test_a_file_changed_within_the_clock_grain_is_not_trusted(tmp_path: Path) -> None:
    file, ledger = tmp_path / "a", tmp_path / "ledger.sqlite"
    file.write_text("one")
    status = os.stat(file)
    before = file_digests([file], ledger)
    file.write_text("two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_digests([file], ledger) != before


def test_a_missing_file_and_a_damaged_ledger_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone cannot be read"):
        file_digests([tmp_path / "gone"], tmp_path / "ledger.sqlite")
    (tmp_path / "bad.sqlite").write_bytes(b"not a database " * 100)
    with pytest.raises(StoreError, match=r"bad\.sqlite cannot be used"):
        file_digests([write(tmp_path / "a", "x")], tmp_path / "bad.sqlite")


def test_several_processes_share_a_ledger(tmp_path: Path) -> None:
    files = [write(tmp_path / "d" / str(i), str(i)) for i in range(200)]
    time.sleep(0.2)
    code = (
        "import sys; from pathlib import Path; from modelyard.data.digest import *\n"
        "print(digest_texts(file_digests(sorted(Path(sys.argv[1]).iterdir()), Path(sys.argv[2]))))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "d"), str(tmp_path / "ledger.sqlite")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = {process.communicate(timeout=60)[0].strip() for process in running}
    assert answers == {digest_texts(file_digests(sorted(files), tmp_path / "other.sqlite"))}
    database = sqlite3.connect(tmp_path / "ledger.sqlite")
    with database:
        assert database.execute("SELECT count(*) FROM file_digests").fetchone() == (200,)
    database.close()


@given(arrays(np.uint8, (4, 3), elements={"min_value": 0, "max_value": 1}))
def test_equal_rows_and_only_those_have_equal_digests(rows: np.ndarray) -> None:
    digests = digest_values(rows)
    for i in range(4):
        for j in range(4):
            assert (digests[i] == digests[j]) == (rows[i] == rows[j]).all()


def test_minus_zero_is_zero() -> None:
    digests = digest_values(np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, -1.0]]))
    assert digests[0] == digests[1] != digests[2]


def test_texts_do_not_run_together() -> None:
    assert digest_texts(["ab", "c"]) != digest_texts(["a", "bc"])


def test_code_is_the_module_and_what_it_imports_from_the_project(tmp_path: Path) -> None:
    write(tmp_path / "load.py", "import numpy\nimport near\nfrom pack.deep import thing\n")
    write(tmp_path / "near.py", "def f():\n    from pack import late\n")
    write(tmp_path / "pack" / "__init__.py", "")
    write(tmp_path / "pack" / "deep.py", "from . import side\nfrom .other import x\n")
    for name in ("side", "other", "late", "unused"):
        write(tmp_path / "pack" / f"{name}.py", "import load\n")
    assert list(code_files(tmp_path, "load")) == [
        "load",
        "near",
        "pack",
        "pack.deep",
        "pack.late",
        "pack.other",
        "pack.side",
    ]


def test_the_code_digest_follows_content_not_time(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.sqlite"
    write(tmp_path / "load.py", "import near\n")
    write(tmp_path / "near.py", "x = 1\n")
    before = code_digest(tmp_path, "load", ledger)
    os.utime(tmp_path / "near.py")
    assert code_digest(tmp_path, "load", ledger) == before
    write(tmp_path / "near.py", "x = 2\n")
    assert code_digest(tmp_path, "load", ledger) != before
