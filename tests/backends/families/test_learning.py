"""Every family learns a small real problem in every framework, and its ONNX file answers as it does."""

from pathlib import Path

import pytest
from tests.backends.families.problems import LIMIT, lessons, taught

from modelyard.backends.families import FAMILIES, FRAMEWORKS

PACKAGES = {"pytorch": "torch", "keras": "keras", "jax": "flax"}
LESSONS = lessons()


def test_there_is_a_lesson_for_every_family() -> None:
    families = {name for name, family in FAMILIES.items() if not family.old_name_of}
    assert families == {lesson.family for lesson in LESSONS.values()}


@pytest.mark.parametrize("name", LESSONS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_it_learns_and_is_exported(framework: str, name: str, tmp_path: Path) -> None:
    pytest.importorskip(PACKAGES[framework])
    lesson = LESSONS[name]
    score, distance = taught(framework, lesson, tmp_path / "model.onnx")
    assert score > lesson.good
    assert distance <= LIMIT
