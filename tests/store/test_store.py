"""The store's map: records whole or refused, and what is said where it cannot be used."""

from collections.abc import Callable
from pathlib import Path

import pytest

from modelyard.spec.errors import NotFoundError, StoreError
from modelyard.spec.records import Parity, TaskSpec
from modelyard.store import Store, open_store

SPEC = TaskSpec(type="classification", target="label", loss="cross-entropy", classes=("a", "b"))


def test_a_record_comes_back_as_it_was(store: Store) -> None:
    path = store.root / "deep" / "spec.json"
    store.write(path, SPEC)
    assert store.read(path, TaskSpec) == SPEC
    assert store.read_or_none(path.with_name("other.json"), TaskSpec) is None


def test_a_missing_record_is_not_found(store: Store) -> None:
    with pytest.raises(NotFoundError, match="no taskspec at"):
        store.read(store.root / "none.json", TaskSpec)


@pytest.mark.parametrize("content", [b"", b"{", b'{"type": 1}', b"\xff\xfe", b"null"])
def test_a_damaged_record_is_told_with_its_file(store: Store, content: bytes) -> None:
    path = store.root / "spec.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"spec\.json is damaged") as caught:
        store.read(path, TaskSpec)
    assert "delete that file" in caught.value.mend


def test_a_record_of_another_kind_is_damage_too(store: Store) -> None:
    store.write(store.root / "spec.json", SPEC)
    with pytest.raises(StoreError, match="is damaged"):
        store.read(store.root / "spec.json", Parity)


def test_the_store_keeps_itself_out_of_git_and_opens_again(tmp_path: Path) -> None:
    for _ in range(2):
        store = open_store(tmp_path / "a" / ".yard")
    assert (store.root / ".gitignore").read_text() == "*\n"


def test_a_file_where_the_store_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / ".yard").write_text("in the way")
    with pytest.raises(StoreError, match=r"\.yard"):
        open_store(tmp_path / ".yard")


def test_a_folder_without_permission_is_told_with_its_mend(
    tmp_path: Path, without_permission: Callable[..., str]
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    code = """
from pathlib import Path
from modelyard.spec.errors import StoreError
from modelyard.store import open_store
try:
    open_store(Path(sys.argv[1]) / ".yard")
except StoreError as error:
    print(error)
"""
    told = without_permission(code, tmp_path / "locked")
    assert f"no permission to use {tmp_path / 'locked' / '.yard'}" in told
    assert "mend: change the owner or mode" in told


def test_every_digest_has_a_folder_name_without_a_colon(store: Store) -> None:
    assert store.bundle_folder("sha256:ab").name == "sha256-ab"
