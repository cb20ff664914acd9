"""Tables of implementations: built-in names and those of installed packages, imported only when used."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelyard.spec.errors import MissingExtraError, UsageError
from modelyard.spec.plugins import Plugin, load, table

BUILT_IN = {
    "ordered": Plugin("collections:OrderedDict", "keeps its order"),
    "counting": Plugin("collections:Counter", "counts"),
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """A real installed package: its code, and metadata with entry points as pip would write them."""

    def write(code: str, points: str) -> None:
        (tmp_path / "yard_extra_parts.py").write_text(code)
        metadata = tmp_path / "yard_extra_parts-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: yard-extra-parts\nVersion: 1.0\n"
        )
        (metadata / "entry_points.txt").write_text(f"[modelyard.engines]\n{points}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "yard_extra_parts", raising=False)

    return write


def test_a_name_leads_to_its_class() -> None:
    assert load("engines", "counting", BUILT_IN).__name__ == "Counter"


def test_an_unknown_name_is_told_with_the_nearest_and_all_there_are() -> None:
    with pytest.raises(
        UsageError, match=r"no engines called 'orderd'; did you mean 'ordered'"
    ) as caught:
        load("engines", "orderd", BUILT_IN)
    assert caught.value.mend == "available: counting, ordered"
    with pytest.raises(UsageError) as caught:
        load("engines", "zzz", BUILT_IN)
    assert "did you mean" not in caught.value.what


def test_an_installed_package_adds_its_own(install: Callable[[str, str], None]) -> None:
    install("class Mine: ...", "mine = yard_extra_parts:Mine")
    merged = table("engines", BUILT_IN)
    assert set(merged) == {"ordered", "counting", "mine"}
    assert merged["mine"].summary == "from yard-extra-parts"
    assert "yard_extra_parts" not in sys.modules, "known without being imported"
    assert load("engines", "mine", BUILT_IN).__name__ == "Mine"
    assert "mine" not in table("tasks", BUILT_IN), "only in the seam it was written for"


def test_an_installed_package_cannot_take_a_built_in_name(
    install: Callable[[str, str], None],
) -> None:
    install("class Evil: ...", "ordered = yard_extra_parts:Evil")
    assert load("engines", "ordered", BUILT_IN).__name__ == "OrderedDict"


def test_a_missing_dependency_is_told_with_the_line_to_type(
    install: Callable[[str, str], None],
) -> None:
    install("import a_package_that_is_not_there", "")
    plugins = {"mine": Plugin("yard_extra_parts:Mine", "mine", extra="serving")}
    with pytest.raises(
        MissingExtraError, match="needs the package 'a_package_that_is_not_there'"
    ) as caught:
        load("engines", "mine", plugins)
    assert caught.value.mend == "pip install 'modelyard[serving]'"


def test_a_mistake_of_our_own_is_not_taken_for_a_missing_extra() -> None:
    """A module of Modelyard that does not exist is a fault, not something to install."""
    plugins = {"mine": Plugin("modelyard.no_such_module:Mine", "mine", extra="serving")}
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        load("engines", "mine", plugins)
