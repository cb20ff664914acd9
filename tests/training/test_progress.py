"""What people and programs see while a training runs."""

import io
import json
import time

import msgspec

from modelyard.spec.records import (
    AnyEvent,
    CheckpointSaved,
    Evaluated,
    Noticed,
    Restarted,
    RunFinished,
    RunStarted,
    StepDone,
    WorkerJoined,
    WorkerLost,
)
from modelyard.training.progress import (
    JsonProgress,
    PlainProgress,
    TerminalProgress,
    describe,
    duration,
    progress_for,
    size,
    usage_text,
)

STEP = StepDone(
    time=2,
    step=50,
    epoch=2.5,
    loss=0.1234,
    learning_rate=1e-3,
    samples_per_second=12345.6,
    eta_seconds=75,
)
EVENTS: list[AnyEvent] = [
    WorkerJoined(time=0, rank=0, pid=11, host="here", device="cpu"),
    RunStarted(time=1, steps=100, steps_per_epoch=20, world_size=2),
    STEP,
    Evaluated(time=3, step=50, epoch=2.5, split="validation", metrics={"loss": 0.5, "f1": 0.9}),
    CheckpointSaved(time=4, step=50, best=True, seconds=0.1),
    Noticed(time=5, message="a [note] with brackets"),
    WorkerLost(time=6, rank=1, pid=12, reason="worker 1 was killed by SIGKILL"),
    Restarted(time=7, step=50),
    RunStarted(time=8, attempt=1, steps=100, steps_per_epoch=20, world_size=2, step=50),
    STEP,
    RunFinished(time=9, state="complete", step=100, seconds=8, reason="all epochs"),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_stream_chooses() -> None:
    assert isinstance(progress_for(io.StringIO()), PlainProgress)
    assert isinstance(progress_for(Terminal()), TerminalProgress)
    assert isinstance(progress_for(Terminal(), json_lines=True), JsonProgress)


def test_plain_lines_hold_back_steps_but_nothing_rare() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, interval=1e9)
    for event in EVENTS:
        progress(event)
    progress.close()
    text = stream.getvalue()
    assert "step 50" not in text.replace("from step 50", "").replace("at step", "")
    for part in ("2 workers", "f1 0.9000", "[note]", "SIGKILL", "again from step 50", "complete"):
        assert part in text
    assert "\x1b" not in text


def test_plain_lines_tell_a_step_when_it_is_time() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, interval=0)
    for event in EVENTS[1:3]:
        progress(event)
    assert (
        "step 50/100, epoch 2.50: loss 0.1234, learning rate 1.00e-03, 12,346 samples/s, 1 min 15 s left"
        in stream.getvalue()
    )


def test_a_silence_is_told_at_least_once_an_interval() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, interval=0.2)
    for event in EVENTS[1:3]:
        progress(event)
    deadline = time.monotonic() + 10
    while stream.getvalue().count("no news") < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    progress(EVENTS[-1])
    told = stream.getvalue().count("no news")
    assert told >= 2 and "step 50/100: no news for" in stream.getvalue()
    time.sleep(0.5)  # an export, a service: no training any more
    assert stream.getvalue().count("no news") == told
    progress.close()
    text = stream.getvalue()
    time.sleep(0.3)
    assert stream.getvalue() == text


def test_what_is_used_is_shown_where_it_is_known() -> None:
    event = msgspec.structs.replace(
        STEP, gradient_norm=1.234, memory=1_234_000_000, cpu=1.94, data_wait=0.034,
        device_memory=8_100_000_000, device_use=0.97,
    )  # fmt: skip
    assert usage_text(event) == (
        "1.2 GB · 1.9 cores busy · GPU 8.1 GB 97 % busy · 3 % waiting for data"
    )
    assert usage_text(STEP) == ""
    texts = msgspec.structs.replace(STEP, tokens_per_second=1_234_567.0)
    assert "1,234,567 tokens/s" in describe(texts) and "samples/s" not in describe(texts)
    assert "gradient norm 1.23, " in describe(event)
    assert [size(n) for n in (1200, 45e6, 1.5e6, 25e9)] == ["1 kB", "45 MB", "1.5 MB", "25 GB"]


def test_the_live_line_shows_pace_and_keeps_what_is_rare() -> None:
    stream = Terminal()
    progress = TerminalProgress(stream)
    for event in EVENTS:
        progress(event)
    progress.close()
    progress.close()
    text = stream.getvalue()
    for part in ("SIGKILL", "a [note] with brackets", "training complete at step 100"):
        assert part in text


def test_json_lines_are_the_events() -> None:
    stream = io.StringIO()
    progress = JsonProgress(stream)
    for event in EVENTS:
        progress(event)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines][:3] == ["worker-joined", "run-started", "step"]
    assert lines[2]["loss"] == 0.1234


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59, 60, 3599, 7500)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "59 min 59 s",
        "2 h 05 min",
    ]
