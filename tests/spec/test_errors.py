"""Errors: what happened, the mend, and the exit code a script can rely on."""

import errno
import re
from pathlib import Path

import pytest

from modelyard.spec import errors
from modelyard.spec.errors import (
    DiskFull,
    MissingExtraError,
    Mistake,
    ProjectError,
    StoreError,
    TrainingError,
    YardError,
    disk_full,
    from_os_error,
    nearest,
)


def all_errors(base: type[YardError] = YardError) -> set[type[YardError]]:
    return {base}.union(*(all_errors(kind) for kind in base.__subclasses__()))


def test_the_drawn_tree_is_the_tree() -> None:
    """Each line of the module's docstring: depth by indentation, name, meaning."""
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"([│├└─ ]*)(\w+)(?:  |$)", line):
            depth = len(match[1]) // 4
            above = [*above[:depth], match[2]]
            drawn[match[2]] = above[depth - 1] if depth else "Exception"
    ours = {kind for kind in all_errors() if kind.__module__ == errors.__name__}
    assert drawn == {kind.__name__: kind.__mro__[1].__name__ for kind in ours}


def test_exit_codes_tell_mistakes_interruptions_and_all_else_apart() -> None:
    ours = {kind for kind in all_errors() if kind.__module__ == errors.__name__}
    codes = {kind.__name__: kind.exit_code for kind in ours if kind.exit_code != 1}
    # 130 is what a shell reports for a program that Ctrl-C ended: 128 + SIGINT.
    wrong_input = dict.fromkeys(("ProjectError", "UsageError", "UnknownMetric"), 2)
    assert codes == {**wrong_input, "TrainingInterrupted": 130}


def test_the_mend_stands_on_its_own_line_where_there_is_one() -> None:
    assert str(YardError("it broke", "mend it")) == "it broke\n  mend: mend it"
    assert str(YardError("it broke")) == "it broke"


def test_a_project_tells_all_mistakes_with_their_places() -> None:
    error = ProjectError(
        [
            Mistake(
                where="train.epochs",
                problem="'x' is not a number",
                expected="a number above 0",
                source="yard.toml",
                line=7,
            ),
            Mistake(
                where="trian", problem="no such section", suggestion="train", source="command line"
            ),
        ]
    )
    assert str(error).splitlines() == [
        "2 mistakes in the project:",
        "  yard.toml:7: train.epochs: 'x' is not a number; expected a number above 0",
        "  command line: trian: no such section; did you mean 'train'?",
    ]
    assert str(ProjectError(error.mistakes[:1])).startswith("1 mistake in")


def test_a_missing_extra_names_the_line_to_type() -> None:
    error = MissingExtraError("serving needs onnxruntime", "serving")
    assert error.mend == "pip install 'modelyard[serving]'"
    assert error.extra == "serving"


@pytest.mark.parametrize(
    ("code", "told", "mend"),
    [
        (errno.ENOSPC, "the disk is full: /store/x could not be written", "free some space"),
        (errno.EDQUOT, "the disk is full", "free some space"),
        (errno.EACCES, "no permission to use /store/x: Permission denied", "owner or mode"),
        (errno.EROFS, "no permission to use /store/x: Read-only file system", "another store"),
        (errno.EMFILE, "too many open files", "ulimit -n"),
        (errno.EIO, "/store/x: Input/output error", "yard doctor"),
    ],
)
def test_errors_of_the_system_become_sentences(code: int, told: str, mend: str) -> None:
    import os

    error = from_os_error(OSError(code, os.strerror(code), "/store/x"))
    assert isinstance(error, StoreError)
    assert error.what.startswith(told)
    assert mend in error.mend


def test_a_full_disk_is_told_with_the_room_that_is_left(tmp_path: Path) -> None:
    told = from_os_error(OSError(errno.ENOSPC, "full"), tmp_path / "state.bin")
    assert isinstance(told, DiskFull)
    assert told.what.startswith(f"the disk is full: {tmp_path}/state.bin could not be written; ")
    assert "free on the file system at /" in told.what
    quota = from_os_error(OSError(errno.EDQUOT, "quota", str(tmp_path / "x")), tmp_path / "y")
    assert quota.what.startswith(f"the disk is full for this user (a quota): {tmp_path}/x could")


def test_a_full_disk_is_found_behind_other_errors(tmp_path: Path) -> None:
    """Wrapped by us, or in the words of a library that keeps the system's number to itself."""
    wrapped = TrainingError("could not meet the others")
    wrapped.__cause__ = OSError(errno.ENOSPC, "full")
    told = disk_full(wrapped, tmp_path)
    assert told is not None and told.what.startswith(f"the disk is full: {tmp_path} could not")
    foreign = RuntimeError("inline_container.cc: file write failed: No space left on device")
    told = disk_full(foreign, tmp_path)
    assert told is not None
    assert told.what.startswith("the disk is full: RuntimeError: inline_container.cc: file write")
    assert "free some space" in told.mend and "are free on the file system at" in told.what
    one = DiskFull("the disk is full: x")
    foreign.__context__ = wrapped.__context__ = one
    assert disk_full(ValueError("y"), tmp_path) is None
    assert disk_full(one, tmp_path) is one
    one.__cause__ = other = ValueError("a ring")
    other.__cause__ = one
    assert disk_full(other, tmp_path) is one


def test_an_error_of_the_system_without_a_file_is_told_too() -> None:
    assert from_os_error(OSError(errno.ENOSPC, "full")).what.startswith(
        "the disk is full: the store"
    )


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("acuracy", "accuracy"),
        ("ACCURACY", "accuracy"),
        ("f1", "F1"),
        ("acc", "accuracy"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_the_nearest_word(word: str, expected: str) -> None:
    assert nearest(word, ["accuracy", "F1", "recall"]) == expected


def test_nothing_is_near_to_nothing() -> None:
    assert nearest("word", []) == ""
