"""The built-in sources pass the contract that third parties' sources must pass."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modelyard.data.sources import open_source
from modelyard.data.sources.base import Source
from modelyard.data.sources.contract import SourceContract


class TestImages(SourceContract):
    @pytest.fixture(params=["rgb", "grey"])
    def source(self, project, pictures: Path, request: pytest.FixtureRequest) -> Source:
        (pictures / "dog" / "5.png").write_bytes(b"broken")
        data = {"path": "pictures", "size": [6, 5], "color": request.param}
        return open_source(project(source="images", **data))


class TestCsv(SourceContract):
    @pytest.fixture
    def source(self, project, people: Path) -> Source:
        return open_source(project(source="csv", path="people.csv", target="ill"))


class TestShards(SourceContract):
    """Two shards of a folder, with a column that is left out, gaps and a broken record where the format can."""

    @pytest.fixture(params=["parquet", "arrow", "jsonl"])
    def source(self, project, tmp_path: Path, request: pytest.FixtureRequest) -> Source:
        rows = [
            {
                "a": i / 3 if i % 4 else None,
                "b": i % 2 == 0,
                "c": "xyz"[i % 3],
                "d": 1,
                "label": i % 2,
            }
            for i in range(21)
        ]
        (tmp_path / "data").mkdir()
        for number, part in enumerate((rows[:10], rows[10:])):
            table = pa.Table.from_pylist(part)
            if request.param == "parquet":
                pq.write_table(table, tmp_path / "data" / f"{number}.parquet", row_group_size=4)
            elif request.param == "arrow":
                with pa.ipc.new_file(
                    str(tmp_path / "data" / f"{number}.arrow"), table.schema
                ) as out:
                    out.write_table(table, max_chunksize=4)
            else:
                lines = [json.dumps(row) for row in part] + ["{broken"]
                (tmp_path / "data" / f"{number}.jsonl").write_text("\n".join(lines))
        return open_source(project(source=request.param, path="data", max_unreadable=0.2))


class TestNpz(SourceContract):
    @pytest.fixture(params=["tensor", "columns"])
    def source(self, project, tmp_path: Path, request: pytest.FixtureRequest) -> Source:
        values = np.random.default_rng(0).normal(size=(9, 4))
        values[3, 1] = np.nan
        columns = {"a": values[:, 0], "b": values[:, 1]}
        inputs = {"x": values} if request.param == "tensor" else columns
        np.savez(tmp_path / "data.npz", **inputs, label=np.arange(9) % 2)
        return open_source(project(source="npz", path="data.npz"))


class TestTexts(SourceContract):
    @pytest.fixture(params=["folder", "csv", "jsonl", "parquet"])
    def source(self, project, tmp_path: Path, request: pytest.FixtureRequest) -> Source:
        texts = ["One, two!", "drei ÄÖ", " ", "日本 x", "five\nlines"]
        rows = [{"words": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)]
        if request.param == "folder":
            for i, row in enumerate(rows):
                (tmp_path / "data" / row["label"]).mkdir(parents=True, exist_ok=True)
                (tmp_path / "data" / row["label"] / f"{i}.txt").write_text(row["words"])
            return open_source(project(source="text", path="data"))
        file = tmp_path / f"data.{request.param}"
        if request.param == "csv":
            lines = ["words,label", *(f'"{row["words"]}",{row["label"]}' for row in rows)]
            file.write_text("\n".join(lines))
        elif request.param == "jsonl":
            file.write_text("\n".join(json.dumps(row) for row in rows))
        else:
            pq.write_table(pa.Table.from_pylist(rows), file)
        return open_source(project(source=request.param, path=file.name, text="words"))


class TestTensors(SourceContract):
    @pytest.fixture
    def source(self, project, tmp_path: Path) -> Source:
        values = np.random.default_rng(0).normal(size=(9, 4, 2))
        values[3, 1, 1] = np.nan
        np.savez(tmp_path / "data.npz", x=values, y=np.arange(9) % 2)
        (tmp_path / "mine.py").write_text(
            "import numpy as np\ndef load():\n    data = np.load('data.npz')\n    return data['x'], data['y']\n"
        )
        return open_source(project(source="mine:load", path="data.npz"))


class TestColumns(SourceContract):
    @pytest.fixture
    def source(self, project, tmp_path: Path) -> Source:
        (tmp_path / "mine.py").write_text(
            "import numpy as np\n"
            "def load():\n"
            "    return {'age': np.arange(6.0), 'town': ['a', 'b', None, 'a', 'b', 'c'],\n"
            "            'ok': np.arange(6) % 2 == 0, 'label': ['x', 'y'] * 3}\n"
        )
        return open_source(project(source="mine:load"))
