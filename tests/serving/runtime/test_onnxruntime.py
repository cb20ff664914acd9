from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelyard.serving.runtime.contract import RuntimeContract
from modelyard.serving.runtime.onnxruntime import OnnxRuntime


class TestOnnxRuntime(RuntimeContract):
    runtime_class = OnnxRuntime

    @pytest.fixture
    def folder(self, bundle: Callable[..., Any]) -> Path:
        return bundle("image").folder
