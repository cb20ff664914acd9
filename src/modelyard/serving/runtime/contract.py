"""The tests that prove a runtime; third parties subclass this in their own test suite.

::

    class TestMine(RuntimeContract):
        runtime_class = MyRuntime

        @pytest.fixture
        def folder(self, tmp_path): ...   # an unpacked bundle that this runtime can run
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from modelyard.bundle.format import GOLDEN, MODEL, BundleManifest, read_manifest
from modelyard.bundle.golden import golden_of
from modelyard.serving.runtime.base import Runtime
from modelyard.spec.errors import ServingError
from modelyard.tasks.parts import by_name


class RuntimeContract:
    """Needs ``runtime_class`` and a fixture ``folder``: an unpacked bundle with golden inputs."""

    runtime_class: type[Runtime]

    def opened(self, folder: Path) -> tuple[Runtime, BundleManifest]:
        manifest = read_manifest(folder)
        runtime = self.runtime_class()
        runtime.open(folder, manifest.signature, threads=1)
        return runtime, manifest

    def test_gives_the_recorded_answers(self, folder: Path) -> None:
        runtime, manifest = self.opened(folder)
        inputs, expected = _golden(folder, manifest)
        answer = _ask(runtime, manifest, inputs)
        assert answer.dtype == expected.dtype
        assert np.abs(answer - expected).max() <= manifest.parity.limit

    def test_the_batch_axis_is_free(self, folder: Path) -> None:
        runtime, manifest = self.opened(folder)
        inputs, expected = _golden(folder, manifest)
        for rows in (1, 2, 17):
            chosen = np.arange(rows) % len(inputs)
            answer = _ask(runtime, manifest, inputs[chosen])
            assert answer.shape == expected[chosen].shape
            assert np.abs(answer - expected[chosen]).max() <= manifest.parity.limit

    def test_takes_arrays_that_cannot_be_written(self, folder: Path) -> None:
        """Arrays read from a request's bytes are views of it."""
        runtime, manifest = self.opened(folder)
        inputs, expected = _golden(folder, manifest)
        frozen = np.frombuffer(inputs.tobytes(), inputs.dtype).reshape(inputs.shape)
        answer = _ask(runtime, manifest, frozen)
        assert np.abs(answer - expected).max() <= manifest.parity.limit

    def test_many_threads_may_ask_at_once(self, folder: Path) -> None:
        runtime, manifest = self.opened(folder)
        inputs, expected = _golden(folder, manifest)

        def ask(number: int) -> float:
            row = number % len(inputs)
            answer = _ask(runtime, manifest, inputs[row : row + 1])
            return float(np.abs(answer - expected[row : row + 1]).max())

        with ThreadPoolExecutor(8) as pool:
            assert max(pool.map(ask, range(64))) <= manifest.parity.limit

    def test_a_damaged_model_is_a_serving_error(self, folder: Path) -> None:
        model = folder / MODEL
        model.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
        self._refuses(folder)

    def test_a_missing_model_is_a_serving_error(self, folder: Path) -> None:
        (folder / MODEL).unlink()
        self._refuses(folder)

    def _refuses(self, folder: Path) -> None:
        try:
            self.opened(folder)
        except ServingError as error:
            assert MODEL in error.what
        else:
            raise AssertionError("it opened a model that is not there")


def _golden(folder: Path, manifest: BundleManifest) -> tuple[NDArray[Any], NDArray[np.float32]]:
    return golden_of(manifest.signature, load_file(folder / GOLDEN))


def _ask(runtime: Runtime, manifest: BundleManifest, inputs: NDArray[Any]) -> NDArray[Any]:
    signature = manifest.signature
    return runtime.run(by_name(signature, inputs))[signature.outputs[0].name]
