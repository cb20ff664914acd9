"""The registry: versions that are never lost, aliases that move, and what is said where there is none."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.spec.errors import NotFoundError, StoreError, UsageError
from modelyard.store import Store, ledger, open_store, registry

ADD_TWENTY = """
import importlib.util
from pathlib import Path
from modelyard.store import Store, registry
spec = importlib.util.spec_from_file_location("conftest", sys.argv[3])
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)
store, me = Store(Path(sys.argv[1])), sys.argv[2]
for number in range(20):
    folder = conftest.write_bundle(store.root.parent / f"bundle-{me}", f"{me}-{number}-")
    digest = registry.put_bundle(store, folder)
    registry.add(store, "digits", digest, run=f"{me}-{number}", aliases=("latest", me))
"""
MOVE_FOR_EVER = """
from pathlib import Path
from modelyard.store import Store, registry
store, turn = Store(Path(sys.argv[1])), 0
print("ready", flush=True)
while True:
    turn = 1 - turn
    registry.set_alias(store, "digits", "production", turn + 1)
"""


def put(store: Store, bundle: Callable[..., Path], text: str = "weights") -> str:
    return registry.put_bundle(store, bundle(text))


def index(store: Store) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = json.loads((store.registry / "index.json").read_text())[
        "manifests"
    ]
    return entries


def test_a_version_has_a_number_an_alias_and_its_lineage(
    store: Store, bundle: Callable[..., Path]
) -> None:
    digest = put(store, bundle)
    added = registry.add(
        store, "digits", digest, run="run-1", dataset="data-1", metrics={"test/accuracy": 0.98}
    )
    assert (added.reference, added.digest, added.aliases) == ("digits:1", digest, ("latest",))
    assert (added.run, added.dataset, added.metrics) == ("run-1", "data-1", {"test/accuracy": 0.98})
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", added.created)
    assert registry.list_versions(store) == [added]


def test_the_folder_is_an_oci_image_layout(store: Store, bundle: Callable[..., Path]) -> None:
    digest = put(store, bundle)
    registry.add(store, "digits", digest, aliases=("latest", "production"))
    layout = json.loads((store.registry / "oci-layout").read_text())
    assert layout == {"imageLayoutVersion": "1.0.0"}
    names = {
        entry["annotations"]["org.opencontainers.image.ref.name"]: entry["digest"]  # type: ignore[index]
        for entry in index(store)
    }
    assert names == dict.fromkeys(("digits:1", "digits:latest", "digits:production"), digest)
    blob = store.registry / "blobs" / "sha256" / digest.removeprefix("sha256:")
    assert {entry["size"] for entry in index(store)} == {blob.stat().st_size}


def test_the_same_bundle_keeps_its_number_and_moves_the_aliases(
    store: Store, bundle: Callable[..., Path]
) -> None:
    one, two = put(store, bundle, "one"), put(store, bundle, "two")
    first = registry.add(store, "digits", one, run="run-1")
    assert registry.add(store, "digits", two).version == 2
    again = registry.add(store, "digits", one, run="run-9")
    assert (again.version, again.aliases, again.run) == (1, ("latest",), first.run)
    assert registry.resolve(store, "digits:2").aliases == ()
    assert len(registry.list_versions(store, "digits")) == 2
    assert registry.add(store, "other", one).reference == "other:1"


def test_references(store: Store, bundle: Callable[..., Path]) -> None:
    one, two, three = (put(store, bundle, text) for text in ("one", "two", "three"))
    registry.add(store, "digits", one, aliases=())
    registry.add(store, "digits", two, aliases=())
    assert registry.resolve(store, "digits").version == 2, "the highest"
    registry.add(store, "digits", three, aliases=())
    registry.set_alias(store, "digits", "latest", 2)
    assert registry.resolve(store, "digits").version == 2, "latest"
    registry.set_alias(store, "digits", "production", 1)
    assert registry.resolve(store, "digits").version == 1, "production"
    assert registry.resolve(store, "digits:3").version == 3
    assert registry.resolve(store, "digits:latest").version == 2
    assert registry.resolve(store, f"digits@{three}").version == 3


@pytest.mark.parametrize(
    ("reference", "told", "mend"),
    [
        ("digit", "no model called 'digit'; did you mean 'digits'?", "there are: digits"),
        (
            "digits:7",
            "no model version 'digits:7'",
            "versions 1 and the aliases latest, production",
        ),
        ("digits:prodution", "did you mean 'digits:production'?", "versions 1"),
        ("digits@sha256:00", "no model version 'digits@sha256:00'", "versions 1"),
        ("digits:", "no model version 'digits:'", "versions 1"),
        ("", "no model called ''", "there are: digits"),
    ],
)
def test_a_reference_to_nothing_says_what_there_is(
    store: Store, bundle: Callable[..., Path], reference: str, told: str, mend: str
) -> None:
    registry.add(store, "digits", put(store, bundle), aliases=("latest", "production"))
    with pytest.raises(NotFoundError, match=re.escape(told)) as caught:
        registry.resolve(store, reference)
    assert mend in caught.value.mend


def test_an_empty_registry_says_how_to_fill_it(store: Store) -> None:
    assert registry.list_versions(store) == []
    with pytest.raises(NotFoundError) as caught:
        registry.resolve(store, "digits")
    assert "yard up" in caught.value.mend


def test_aliases_move_and_go(store: Store, bundle: Callable[..., Path]) -> None:
    for text in ("one", "two"):
        registry.add(store, "digits", put(store, bundle, text), aliases=())
    registry.set_alias(store, "digits", "production", 1)
    assert registry.set_alias(store, "digits", "production", 2).aliases == ("production",)
    assert registry.resolve(store, "digits:1").aliases == ()
    assert registry.remove_alias(store, "digits", "production").aliases == ()
    with pytest.raises(NotFoundError, match="'digits:production'"):
        registry.remove_alias(store, "digits", "production")
    with pytest.raises(NotFoundError, match="'digits:3'"):
        registry.set_alias(store, "digits", "production", 3)


def test_every_change_stands_in_the_ledger_once(store: Store, bundle: Callable[..., Path]) -> None:
    digest = put(store, bundle)
    for _ in range(2):
        registry.add(store, "digits", digest)
        registry.set_alias(store, "digits", "production", 1)
    registry.remove_alias(store, "digits", "latest")
    told = [(entry.kind, entry.subject) for entry in reversed(ledger.entries(store))]
    assert told == [
        ("version-added", "digits:1"),
        ("alias-set", "digits:latest"),
        ("alias-set", "digits:production"),
        ("alias-removed", "digits:latest"),
    ]
    assert ledger.entries(store, kind="version-added")[0].detail["digest"] == digest


@given(alias=st.text(min_size=1, max_size=12))
def test_an_alias_is_an_oci_tag_and_never_a_number(
    alias: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = open_store(tmp_path_factory.mktemp("store"))
    with pytest.raises((UsageError, NotFoundError)) as caught:
        registry.set_alias(store, "digits", alias, 1)
    # Accepted aliases get as far as the missing model.
    fits = re.fullmatch(r"[a-z0-9_][a-z0-9._-]{0,127}", alias) and not re.fullmatch(
        r"[0-9]+", alias
    )
    assert isinstance(caught.value, NotFoundError if fits else UsageError)


@pytest.mark.parametrize("name", ["", "Digits", "a/b", "a:b", "../up", "-a", "a b", "é", "a" * 200])
def test_a_name_that_other_tools_could_not_read_is_refused(
    store: Store, bundle: Callable[..., Path], name: str
) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a model"):
        registry.add(store, name, put(store, bundle))


def test_only_a_bundle_can_become_a_version(store: Store, bundle: Callable[..., Path]) -> None:
    layer = json.loads(registry.blobs(store).read(put(store, bundle)))["layers"][0]["digest"]
    with pytest.raises(StoreError, match="is not a model's manifest"):
        registry.add(store, "digits", layer)
    with pytest.raises(NotFoundError, match="holds no blob"):
        registry.add(store, "digits", "sha256:" + "0" * 64)
    assert registry.list_versions(store) == []


def test_what_others_wrote_into_the_layout_stays(store: Store, bundle: Callable[..., Path]) -> None:
    image = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": "sha256:" + "1" * 64,
        "size": 3,
        "platform": {"os": "linux", "architecture": "amd64"},
    }
    store.registry.mkdir()
    (store.registry / "index.json").write_text(
        json.dumps({"schemaVersion": 2, "manifests": [image], "annotations": {"by": "another"}})
    )
    registry.add(store, "digits", put(store, bundle))
    assert image in index(store)
    assert json.loads((store.registry / "index.json").read_text())["annotations"] == {
        "by": "another"
    }
    assert [item.reference for item in registry.list_versions(store)] == ["digits:1"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"manifests": 1}', b'{"manifests": [{}]}', b"{}", b"\xff"]
)
def test_a_damaged_index_is_told_and_not_overwritten(
    store: Store, bundle: Callable[..., Path], content: bytes
) -> None:
    digest = put(store, bundle)
    (store.registry / "index.json").write_bytes(content)
    for use in (lambda: registry.list_versions(store), lambda: registry.add(store, "a", digest)):
        with pytest.raises(StoreError, match=r"index\.json is damaged"):
            use()
    assert (store.registry / "index.json").read_bytes() == content


def test_processes_that_add_at_the_same_time_lose_nothing(
    store: Store, run_together: Callable[..., None]
) -> None:
    conftest = Path(__file__).with_name("conftest.py")
    run_together(ADD_TWENTY, [(store.root, name, conftest) for name in "abcd"])
    versions = registry.list_versions(store, "digits")
    assert [item.version for item in versions] == list(range(1, 81))
    assert {item.run for item in versions} == {f"{me}-{n}" for me in "abcd" for n in range(20)}
    aliases = {alias: item for item in versions for alias in item.aliases}
    assert aliases["latest"].version == 80
    assert {aliases[me].run for me in "abcd"} == {f"{me}-19" for me in "abcd"}
    # 80 versions; each moved "latest" and its own writer's alias.
    assert ledger.verify_chain(store) == 3 * 80


@pytest.mark.parametrize("turn", range(6))
def test_a_killed_writer_leaves_the_old_or_the_new_index(
    store: Store, bundle: Callable[..., Path], turn: int, kill_in_the_middle: Callable[..., None]
) -> None:
    for text in ("one", "two"):
        registry.add(store, "digits", put(store, bundle, text), aliases=())
    registry.set_alias(store, "digits", "production", 1)
    kill_in_the_middle(MOVE_FOR_EVER, store.root, within=0.1)
    assert len(registry.list_versions(store)) == 2
    assert registry.resolve(store, "digits:production").version in (1, 2)
    assert ledger.verify_chain(store) >= 3
    assert registry.set_alias(store, "digits", "production", 2).aliases == ("production",)


def test_a_registry_without_write_permission_is_told_and_unharmed(
    store: Store, bundle: Callable[..., Path], without_permission: Callable[..., str]
) -> None:
    registry.add(store, "digits", put(store, bundle))
    before = (store.registry / "index.json").read_bytes()
    folders = [path for path in (store.registry, *store.registry.rglob("*")) if path.is_dir()]
    (store.registry / ".lock").unlink()
    for folder in folders:
        folder.chmod(0o500)
    code = """
from pathlib import Path
from modelyard.spec.errors import StoreError
from modelyard.store import Store, registry
store = Store(Path(sys.argv[1]))
print(registry.resolve(store, "digits").reference)
for change in (
    lambda: registry.set_alias(store, "digits", "production", 1),
    lambda: registry.put_bundle(store, Path(sys.argv[2])),
):
    try:
        change()
    except StoreError as error:
        print(error)
"""
    told = without_permission(code, store.root, bundle("another"))
    for folder in folders:
        folder.chmod(0o700)
    assert told.startswith("digits:1\n")
    assert told.count(f"no permission to use {store.registry}") == 2
    assert told.count("mend: change the owner or mode of that folder") == 2
    assert (store.registry / "index.json").read_bytes() == before
    assert [entry.kind for entry in ledger.entries(store)] == ["alias-set", "version-added"]
