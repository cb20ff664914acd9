"""Engines are tested as a command finds them: nothing is kept from one job for the next."""

from collections.abc import Iterator

import pytest

from modelyard.engines.forerunner import kept


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    with kept(0):
        yield
