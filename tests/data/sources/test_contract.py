"""The three sources pass the contract that third parties' sources must pass."""

from pathlib import Path

import numpy as np
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
