"""A backend of another package, one file and one line, keeps the whole contract and trains a project."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelyard.backends import recognise
from modelyard.backends.contract import BackendContract, Case
from modelyard.backends.source import framework_of

FOLDER = str(Path(__file__).with_name("fourth"))


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As ``pip install tiny-backend`` would: here and in the processes that tests start."""
    monkeypatch.syspath_prepend(FOLDER)
    path = os.pathsep.join([FOLDER, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    monkeypatch.setenv("PYTHONPATH", path)
    yield


class TestTiny(BackendContract):
    case = Case(backend="tiny", root=FOLDER, build="tiny_backend:build")


def test_its_model_is_recognised() -> None:
    case = TestTiny.case
    assert framework_of(Path(FOLDER), case.build, {}, case.signature, case.task) == "tiny"
    with pytest.raises(Exception, match="no backend knows"):
        recognise(object())
