"""A long table gets the same figures as a short one, and needs no more memory than a part of it."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.data import table_fit
from modelyard.data.sources.base import ColumnSchema
from modelyard.data.table_fit import TableFit

SCHEMA = (
    ColumnSchema("n", "numeric"),
    ColumnSchema("b", "boolean"),
    ColumnSchema("c", "categorical", ("x", "y", "z")),
    ColumnSchema("none", "numeric"),
)
NUMBERS = st.none() | st.floats(-1e6, 1e6)
ROWS = st.lists(
    st.tuples(NUMBERS, st.sampled_from([0.0, 1.0, math.nan]), st.integers(-1, 2)), min_size=1
)


def chunks(rows: list[tuple[float | None, float, int]], size: int) -> list[dict[str, np.ndarray]]:
    found = []
    for start in range(0, len(rows), size):
        n, b, c = zip(*rows[start : start + size], strict=True)
        found.append(
            {
                "n": np.array([math.nan if v is None else v for v in n]),
                "b": np.array(b),
                "c": np.array(c, dtype=np.int32),
                "none": np.full(len(n), math.nan),
            }
        )
    return found


@settings(deadline=None)
@given(ROWS, st.integers(1, 9))
def test_passes_give_the_figures_of_whole_columns(rows, size: int) -> None:
    parts = chunks(rows, size)
    exact = TableFit(SCHEMA, lambda: iter(parts), len(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_fit, "EXACT_VALUES", 0)
        passes = TableFit(SCHEMA, lambda: iter(parts), len(rows))
    assert exact.exact and not passes.exact
    for one, other in zip(exact.columns(), passes.columns(), strict=True):
        assert type(one) is type(other) and one.name == other.name
        for figure in {"mean", "std", "fill", "categories", "indicator"} & set(dir(one)):
            if figure == "fill" and one.name == "n":
                continue  # the median of a sample
            if figure == "categories" or isinstance(getattr(one, figure), bool):
                assert getattr(one, figure) == getattr(other, figure)
            else:
                spread = 1e-6 * (1 + max(abs(v or 0) for v, _, _ in rows))
                close = abs(getattr(one, figure) - getattr(other, figure)) <= spread
                assert close or min(one.std, other.std) < spread, figure
    for one, other in zip(exact.profiles(), passes.profiles(), strict=True):
        assert (one.name, one.count, one.missing) == (other.name, other.count, other.missing)
        if one.name in ("b", "c"):
            assert one.counts == other.counts
        elif one.count:
            assert (one.min, one.max) == (other.min, other.max)
            assert sum(other.counts) == other.count


def test_the_median_of_a_long_column_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_fit, "EXACT_VALUES", 0)
    values = np.random.default_rng(0).exponential(size=200_000)
    parts = [{"n": values[start : start + 4096]} for start in range(0, len(values), 4096)]
    monkeypatch.setattr(table_fit, "SAMPLE_VALUES", 20_000)
    fit = TableFit((ColumnSchema("n", "numeric"),), lambda: iter(parts), len(values))
    (column,) = fit.columns()
    assert abs((values < column.fill).mean() - 0.5) < 0.02
    assert math.isclose(column.mean, values.mean()) and math.isclose(column.std, values.std())


LIMITED = """
import resource, sys
from pathlib import Path
import pyarrow.parquet  # what is loaded before anything is read
from modelyard.data.dataset import prepare
from modelyard.data.sources import parquet
from modelyard.spec.project import Project
from modelyard.store import open_store

room = int(sys.argv[2]) * 2**20
root = Path(sys.argv[1])
project = Project.model_validate({
    "project": {"name": "t"}, "data": {"source": "parquet", "path": "shards"},
    "model": {"build": "mlp"}, "root": root,
})
status = Path("/proc/self/status").read_text()
now = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (now + room, now + room))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dataset = prepare(project, open_store(root / "store"))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(dataset.samples, dataset.input.shape[0], grown // 1024)
"""


@pytest.mark.slow
def test_a_folder_of_shards_far_larger_than_the_memory(tmp_path: Path) -> None:
    """574 MB of cells, in a process whose address space may grow by 350 MB and whose memory by 160."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    (tmp_path / "shards").mkdir()
    columns, rows, shards = 200, 47_000, 8
    for shard in range(shards):
        table = {f"x{i}": random.normal(size=rows).astype(np.float32) for i in range(columns)}
        table["label"] = random.integers(0, 3, rows)
        pq.write_table(pa.table(table), tmp_path / "shards" / f"{shard}.parquet", compression=None)
    # Every thread reserves address space for its own heap and Arrow for its own; one heap is measured.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), "350"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    samples, features, grown = map(int, done.stdout.split())
    assert (samples, features) == (rows * shards, columns)
    print(grown)
    assert grown < 160, f"{grown} MB for {samples * columns * 8 >> 20} MB of cells"
    assert list((tmp_path / "store").rglob("*spool*")) == []
