"""Cores that a process may use: by its group, its affinity and the machine."""

from pathlib import Path

import pytest

from modelyard.spec.cores import available_cores, quota_of_cores

UNLIMITED = 2**60


def group(root: Path, place: str, quota: str) -> None:
    (root / place).mkdir(parents=True, exist_ok=True)
    (root / place / "cpu.max").write_text(f"{quota}\n")


@pytest.mark.parametrize(
    ("own", "above", "cores"),
    [
        ("200000 100000", "max 100000", 2),
        ("150000 100000", "max 100000", 2),
        ("50000 100000", "400000 100000", 1),
        ("max 100000", "300000 100000", 3),
        ("800000 100000", "400000 100000", 4),
    ],
)
def test_a_quota_counts_as_whole_cores_and_the_smallest_above_holds(
    tmp_path: Path, own: str, above: str, cores: int
) -> None:
    root, listed = tmp_path / "cgroup", tmp_path / "listed"
    group(root, "slice/service", own)
    group(root, "slice", above)
    listed.write_text("4:memory:/elsewhere\n0::/slice/service\n")
    assert quota_of_cores(listed, root) == cores


def test_without_a_quota_or_groups_there_is_no_limit(tmp_path: Path) -> None:
    listed = tmp_path / "listed"
    assert quota_of_cores(listed, tmp_path) > UNLIMITED
    for text in ("", "1:cpu:/\n", "0::/\n", "0::/gone\n"):
        listed.write_text(text)
        assert quota_of_cores(listed, tmp_path) > UNLIMITED
    assert available_cores() >= 1
