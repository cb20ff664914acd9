"""Links between the pages lead somewhere, and the commands in them can be parsed."""

import re
import shlex
from pathlib import Path

import pytest

from modelyard.cli.__main__ import build_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> list[str]:
    """Every ``yard …`` line in a fenced block of a page."""
    blocks = re.findall(r"^```(?:\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [
        line.split("  #")[0].strip()
        for block in blocks
        if not block.startswith("usage:")
        for line in block.splitlines()
    ]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [part for part in parts if part.startswith("yard ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_understood(page: Path) -> None:
    parser = build_parser("*")
    for command in commands(page):
        parser.parse_args(shlex.split(command)[1:])


def test_the_pages_hold_commands() -> None:
    assert len(commands(ROOT / "README.md")) >= 8
    assert len(commands(ROOT / "docs" / "tutorial.md")) >= 12
