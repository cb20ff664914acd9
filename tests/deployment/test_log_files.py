"""Logs: small for ever, and one story when read."""

from pathlib import Path

from modelyard.deployment.log_files import RotatingLog, merged_tail


def test_a_log_never_grows_beyond_its_limit(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "replica-0.log", limit=1000, keep=3)
    for number in range(200):
        log.write(f"line {number}")
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["replica-0.log", "replica-0.log.1", "replica-0.log.2"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert (tmp_path / "replica-0.log").read_text().endswith("line 199\n")


def test_the_tail_reaches_back_over_a_rotation(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "replica-0.log", limit=1000)
    for number in range(40):
        log.write(f"line {number}")
    log.close()
    tail = [line.rpartition(" ")[2] for line in merged_tail(tmp_path, 25).splitlines()]
    assert tail == [str(number) for number in range(15, 40)]


def test_logs_are_merged_by_time_and_lines_without_one_stay_with_the_line_before(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.log").write_text(
        "2026-01-01T00:00:01.000Z first\nTraceback …\n2026-01-01T00:00:03.000Z third\n"
    )
    (tmp_path / "b.log").write_text("2026-01-01T00:00:02.000Z second\n")
    assert merged_tail(tmp_path, 10).splitlines() == [
        "a | 2026-01-01T00:00:01.000Z first",
        "a | 2026-01-01T00:00:01.000Z Traceback …",
        "b | 2026-01-01T00:00:02.000Z second",
        "a | 2026-01-01T00:00:03.000Z third",
    ]


def test_there_may_be_no_logs(tmp_path: Path) -> None:
    assert merged_tail(tmp_path / "missing", 10) == ""
