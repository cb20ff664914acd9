"""Frameworks train alike: the command that prints the table keeps its bars, and knows when they are broken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.parity_models import KINDS, own_optimizers, own_schedules  # noqa: E402

from benchmarks import parity  # noqa: E402


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_models_optimizers_and_schedules_are_alike_in_three_frameworks() -> None:
    """1e-5 at the first step, 1e-3 relative after twenty; each optimizer as its paper has it."""
    for package in ("torch", "keras", "flax"):
        pytest.importorskip(package)
    only = ("pytorch", "keras on tensorflow", "jax")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.parity", "--json", "--only", ",".join(only)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)
    models = {(row["model"], row["framework"]): row for row in rows if "model" in row}
    assert set(models) == {(kind, name) for kind in KINDS for name in only}
    for row in models.values():
        assert row["first_difference"] <= 1e-5 and row["last_difference"] <= 1e-3
        assert row["last_loss"] < 0.9 * row["first_loss"], "nothing was learnt"
    rules = [row for row in rows if "optimizer" in row]
    assert {row["optimizer"] for row in rules} == set(own_optimizers.settings())
    assert max(row["ours"] for row in rules) <= parity.WEIGHTS
    # Where a framework has the optimizer, its own keeps to the rule too: so do we, then, to it.
    assert max(row["own"] for row in rules if row["own"] is not None) <= parity.OWN
    rates = [row["gap"] for row in rows if "schedule" in row and row["gap"] is not None]
    assert len(rates) >= 15 and max(rates) <= parity.RATES


def test_a_difference_breaks_the_bar() -> None:
    found = {
        "reference": {"losses": {"mlp": [2.0, 1.0]}},
        "alike": {"losses": {"mlp": [2.000001, 1.0005]}},
        "first": {"losses": {"mlp": [2.0001, 1.0]}},
        "after": {"losses": {"mlp": [2.0, 1.01]}},
    }
    held = {row["framework"]: row["held"] for row in parity.model_rows(found)}
    assert held == {"alike": True, "first": False, "after": False}


def test_the_page_holds_every_row_of_the_tables() -> None:
    page = (ROOT / "docs" / "frameworks.md").read_text()
    titles = [*KINDS, *own_optimizers.settings(), *own_schedules.ASKED, *parity.FRAMEWORKS]
    assert [title for title in titles if f"| {title} |" not in page] == []
    assert "BROKEN" not in page
