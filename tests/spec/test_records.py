"""Records: JSON and back, what a notebook shows, and that old files stay readable."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.spec import records
from modelyard.spec.records import (
    AnyEvent,
    Bundle,
    Dataset,
    Deployment,
    Finding,
    ModelVersion,
    Parity,
    Record,
    Replica,
    Run,
    Service,
    TaskSpec,
)
from modelyard.spec.signature import Signature, Tensor, TensorInput

TASK = TaskSpec(type="classification", target="label", loss="cross-entropy", classes=("a", "é"))
PARITY = Parity(samples=1, largest_error=1e-6, limit=1e-4, framework="f", runtime="r")
SERVICE = Service(name="s", model="m", version=1, digest="sha256:0", bundle_folder="/b")
EXAMPLES: list[Record] = [
    TASK,
    PARITY,
    SERVICE,
    Dataset(
        id="1", source="csv", path="x.csv", folder="/d", samples=3, splits={"train": 3}, task=TASK,
        input=TensorInput(shape=(2,)),
        quality=(Finding(kind="missing", severity="note", message="m", examples=("x",)),),
    ),
    Run(id="1", project="p", state="complete", created="now", folder="/r", dataset="1", confusion=((1, 0), (0, 1))),
    Bundle(
        digest="sha256:0", name="n", run="1", dataset="1", task=TASK, parity=PARITY, input=TensorInput(shape=(2,)),
        signature=Signature(inputs=(Tensor(name="i", dtype="float32", shape=(None, 2)),), outputs=()),
    ),
    ModelVersion(name="digits", version=3, digest="sha256:0", aliases=("latest",)),
    Replica(index=0, pid=None, address="127.0.0.1:1", state="ready", version=1, digest="sha256:0"),
    Deployment(name="d", target="local", state="ready", url="http://x", service=SERVICE),
]  # fmt: skip


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_from_json_and_cannot_be_changed(record: Record) -> None:
    text = record.to_json()
    assert text.endswith(b"}\n")
    assert type(record).from_json(text) == record
    with pytest.raises(AttributeError):
        setattr(record, record.__struct_fields__[0], "other")


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: type(record).__name__)
def test_fields_that_a_later_version_wrote_are_ignored(record: Record) -> None:
    """A record in the store may be newer than the code that reads it."""
    content: dict[str, Any] = msgspec.json.decode(record.to_json()) | {"written_later": [1]}
    assert type(record).from_json(msgspec.json.encode(content)) == record


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: type(record).__name__)
def test_a_notebook_shows_every_field(record: Record) -> None:
    page = record._repr_html_()
    assert f"<b>{type(record).__name__}</b>" in page
    assert all(f">{name}</th>" in page for name in record.__struct_fields__)


@given(st.text(max_size=400))
def test_no_text_from_data_is_markup_in_a_notebook(text: str) -> None:
    page = Finding(kind="typo", severity="note", message=text)._repr_html_()
    plain = Finding(kind="typo", severity="note", message="")._repr_html_()
    assert page.count("<") == plain.count("<")
    assert len(page) < 3000


def test_long_values_are_shortened_where_they_are_shown_only() -> None:
    run = Run(
        id="1", project="p", state="failed", created="", folder="", dataset="", error="x" * 5000
    )
    assert "x" * 299 + "…" in run._repr_html_()
    assert Run.from_json(run.to_json()).error == "x" * 5000


def test_a_version_is_referred_to_by_name_and_number() -> None:
    assert ModelVersion(name="digits", version=3, digest="").reference == "digits:3"


def test_every_event_is_one_line_and_has_a_tag_of_its_own() -> None:
    kinds = AnyEvent.__args__  # type: ignore[attr-defined]
    tags = [kind.__struct_config__.tag for kind in kinds]
    assert len(set(tags)) == len(tags)
    declared = {
        value
        for value in vars(records).values()
        if isinstance(value, type)
        and issubclass(value, records.Event)
        and value is not records.Event
    }
    assert set(kinds) == declared, "an event that AnyEvent leaves out could be written, never read"
    line = msgspec.json.encode(records.Noticed(time=1.0, message="a\nb"))
    assert line.count(b"\n") == 0
