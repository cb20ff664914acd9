"""Errors: what happened, the mend, and the exit code a script can rely on."""

import errno
import re

import pytest

from modelyard.spec import errors
from modelyard.spec.errors import (
    MissingExtraError,
    Mistake,
    ProjectError,
    StoreError,
    YardError,
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
