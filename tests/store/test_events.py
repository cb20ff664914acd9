"""The event log: torn lines, several writers, readers that follow."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.spec.errors import StoreError
from modelyard.spec.records import Noticed, RunStarted, StepDone
from modelyard.store.events import EventLog, EventReader, decode, read_events

APPEND_MANY = """
from pathlib import Path
from modelyard.spec.records import Noticed
from modelyard.store.events import EventLog
log = EventLog(Path(sys.argv[1]))
for number in range(300):
    log.append(Noticed(time=number, message=sys.argv[2] + "x" * 2000))
"""
APPEND_FOR_EVER = """
from pathlib import Path
from modelyard.spec.records import Noticed
from modelyard.store.events import EventLog
log = EventLog(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    log.append(Noticed(time=0, message="x" * 50_000))
"""
APPEND_TO_A_NEARLY_FULL_DISK = """
import resource, signal
from pathlib import Path
from modelyard.spec.errors import StoreError
from modelyard.spec.records import Noticed
from modelyard.store.events import EventLog
path = Path(sys.argv[1])
log = EventLog(path)
log.append(Noticed(time=1, message="before"))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
try:
    log.append(Noticed(time=2, message="does not fit"))
except StoreError:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.append(Noticed(time=3, message="after"))
"""


def notices(path: Path) -> list[str]:
    return [event.message for event in read_events(path) if isinstance(event, Noticed)]


def test_every_kind_of_event_comes_back_as_it_was(tmp_path: Path) -> None:
    events = [
        RunStarted(time=1.0, steps=10, steps_per_epoch=2.5, world_size=2),
        StepDone(
            time=2.0, step=1, epoch=0.1, loss=2.3, learning_rate=0.1, samples_per_second=9.0,
            eta_seconds=3.0,
        ),
        Noticed(time=3.0, attempt=1, message='a "quoted"\nline'),
    ]  # fmt: skip
    log = EventLog(tmp_path / "run" / "events.jsonl")
    for event in events:
        log.append(event)
    log.close()
    assert read_events(tmp_path / "run" / "events.jsonl") == events


def test_lines_of_several_processes_never_mix(
    tmp_path: Path, run_together: Callable[..., None]
) -> None:
    path = tmp_path / "events.jsonl"
    run_together(APPEND_MANY, [(path, name) for name in "abcd"])
    told = notices(path)
    assert sorted(text[0] for text in told) == sorted("abcd" * 300)
    assert {len(text) for text in told} == {2001}
    assert len(path.read_bytes().splitlines()) == 1200


@pytest.mark.parametrize("turn", range(5))
def test_a_killed_writer_costs_the_next_one_nothing(
    tmp_path: Path, turn: int, kill_in_the_middle: Callable[..., None]
) -> None:
    path = tmp_path / "events.jsonl"
    kill_in_the_middle(APPEND_FOR_EVER, path)
    log = EventLog(path)
    log.append(Noticed(time=1, message="next"))
    log.close()
    told = notices(path)
    assert told[-1] == "next"
    assert set(told[:-1]) <= {"x" * 50_000}
    assert len(path.read_bytes().splitlines()) - len(told) <= 1


@given(cut=st.integers(1, 60))
def test_a_torn_line_is_skipped_and_does_not_swallow_the_next(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    log = EventLog(path)
    log.append(Noticed(time=1, message="whole"))
    log.append(Noticed(time=2, message="torn" * 20))
    log.close()
    path.write_bytes(path.read_bytes()[:-cut])
    again = EventLog(path)
    again.append(Noticed(time=3, message="after"))
    again.close()
    # Only the newline may be missing: then the line itself is whole.
    assert notices(path) == (["whole", "torn" * 20, "after"] if cut == 1 else ["whole", "after"])


def test_an_event_that_did_not_fit_on_the_disk_is_told_and_the_next_one_is_whole(
    tmp_path: Path, run_together: Callable[..., None]
) -> None:
    path = tmp_path / "events.jsonl"
    run_together(APPEND_TO_A_NEARLY_FULL_DISK, [(path,)])
    assert notices(path) == ["before", "after"]


def test_a_full_disk_is_told_with_its_mend() -> None:
    log = EventLog(Path("/dev/full"))
    with pytest.raises(StoreError, match="the disk is full: /dev/full") as caught:
        log.append(Noticed(time=1, message="x"))
    log.close()
    assert "free some space" in caught.value.mend


def test_a_reader_follows_and_waits_for_half_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    assert list(reader.read()) == []
    first, second = (
        b'{"event":"notice","time":1,"message":"a"}'.replace(b"notice", b"noticed"),
        b'{"event":"noticed","time":2,"message":"b"}',
    )
    path.write_bytes(first + b"\n" + second[:10])
    assert [event.time for event in reader.read()] == [1]
    assert list(reader.read()) == []
    path.write_bytes(first + b"\n" + second + b"\n")
    assert [event.time for event in reader.read()] == [2]


@given(st.binary(max_size=200))
def test_any_bytes_are_an_event_or_nothing(line: bytes) -> None:
    decode(line)
