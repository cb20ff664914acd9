"""The report: one file, everything escaped, nothing fetched."""

import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec

from modelyard.spec.records import (
    AnyEvent,
    Checkpoint,
    Dataset,
    Evaluated,
    Finding,
    Machine,
    Restarted,
    Run,
    StepDone,
    TaskSpec,
    WorkerLost,
    WorkerRecord,
)
from modelyard.spec.signature import TensorInput
from modelyard.training.report import number, write_report

CLASSES = ("<b>cat</b>", "dog & co")
DATASET = Dataset(
    id="d1",
    source="images",
    path="data/",
    folder="/nowhere",
    samples=1234,
    splits={"train": 1000, "validation": 100, "test": 134},
    task=TaskSpec(type="classification", target="label", loss="cross-entropy", classes=CLASSES),
    input=TensorInput(shape=(4,)),
    quality=(
        Finding(
            kind="leak", severity="warning", message="2 <i>duplicates</i>", examples=("a.png",)
        ),
    ),
)
RUN = Run(
    id="pets-0123456789",
    project="pets <script>alert(1)</script>",
    state="complete",
    created="2026-01-02T03:04:05+00:00",
    folder="/nowhere",
    dataset="d1",
    inputs={"train.metric": "accuracy", "code": "sha256:1"},
    world_size=2,
    workers=(WorkerRecord(rank=0, pid=7, host="h", device="cpu"),),
    restarts=1,
    step=20,
    steps=20,
    best=Checkpoint(step=20, epoch=2.0, folder="/nowhere"),
    metrics={"validation/loss": 0.25, "test/loss": 0.123456, "test/accuracy": 0.98765},
    confusion=((60, 7), (3, 64)),
    seconds=75.2,
    samples_per_second=1234.5,
)


def events() -> list[AnyEvent]:
    found: list[AnyEvent] = [
        StepDone(
            time=100.0 + step,
            step=step,
            epoch=step / 10,
            loss=1 / step,
            learning_rate=0.1,
            samples_per_second=10,
            eta_seconds=1,
        )
        for step in range(1, 21)
    ]
    found.insert(10, WorkerLost(time=110, rank=1, pid=8, reason="worker 1 was <killed>"))
    found.insert(11, Restarted(time=110.5, step=10))
    found.append(
        Evaluated(time=120, step=20, epoch=2.0, split="validation", metrics={"accuracy": 0.9})
    )
    return found


class Page(HTMLParser):
    """Collects tags and what they refer to, and checks that they are closed in order."""

    void = {"meta", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [v or "" for k, v in attrs if k in ("href", "src", "xlink:href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [v or "" for k, v in attrs if k in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_one_file_with_pictures_and_everything_worth_knowing(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(RUN, DATASET, events(), path)
    page = Page(path.read_text())
    assert page.open == []
    assert page.tags.count("svg") == 2
    assert "script" not in page.tags and "i" not in page.tags and "b" in page.tags
    assert all(reference.startswith(("#", "data:image/png")) for reference in page.references)
    assert not re.search(r"(src|href)=.?https?:|url\(http|@import", path.read_text())
    for part in (
        "pets <script>alert(1)</script>",
        "0.9877",
        "0.1235",
        "1,234 (train 1,000, validation 100, test 134)",
        "2 <i>duplicates</i>",
        "<b>cat</b>, dog & co",
        "worker 1 was <killed>",
        "start again from step 10",
        "1 min 15 s",
        "2026-01-02 03:04:05 UTC",
    ):
        assert part in page.text, part


def test_a_failed_run_has_a_report_too(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    failed = Run(
        id="x",
        project="p",
        state="failed",
        created="now",
        folder="/nowhere",
        dataset="d1",
        error="the loss was <nan>",
    )
    write_report(failed, DATASET, [], path)
    page = Page(path.read_text())
    assert "the loss was <nan>" in page.text and "svg" not in page.tags


def test_a_regression_and_a_metric_that_is_the_loss(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    plain = Run(
        id="x", project="p", state="complete", created="now", folder="/nowhere", dataset="d1"
    )
    write_report(plain, DATASET, events(), path)
    assert Page(path.read_text()).tags.count("svg") == 1


def test_many_classes_still_make_a_picture(tmp_path: Path) -> None:
    from modelyard.training.curves import confusion_matrix

    counts = [[int(row == column) for column in range(120)] for row in range(120)]
    picture = confusion_matrix(counts, [f"class {index}" for index in range(120)])
    assert picture.startswith("<svg") and len(picture) < 500_000


def test_numbers_are_rounded() -> None:
    assert [number(v) for v in (0.98765432, 12345.678, float("nan"))] == [
        "0.9877",
        "12,345.7",
        "–",
    ]


def test_a_budget_its_cost_and_the_machine_are_told(tmp_path: Path) -> None:
    here = Machine(host="desk", system="Linux", processor="Fast 9000", cores=8, memory=16 * 10**9)
    run = msgspec.structs.replace(
        RUN, reason="time budget", cost=12.5, machine=here, versions={"torch": "2.13"},
        command="yard train", code={"model.py": "sha256:abc"},
    )  # fmt: skip
    write_report(run, DATASET, [], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    for part in ("ended by its time budget", "12.50", "Fast 9000", "8 cores", "16 GB", "torch 2.13", "sha256:abc"):  # fmt: skip
        assert part in text, part
