"""Parity: does the exported model give the framework's answers, and does a bundle still give its own."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelyard.bundle.format import MODEL, BundleManifest, read_manifest
from modelyard.bundle.golden import close, read_golden
from modelyard.data.preprocess import encode
from modelyard.spec.errors import DataError, ExportError, MissingExtraError, StoreError
from modelyard.spec.records import Parity
from modelyard.spec.signature import Signature
from modelyard.tasks.parts import by_name

_CHUNK = 64
_REPEATS, _SECONDS = 21, 1.0
_DAMAGED = "export it again with `yard up`"


class ExportedModel:
    """``model.onnx`` in ONNX Runtime: one thread on the CPU, and nothing printed."""

    def __init__(self, path: Path, signature: Signature) -> None:
        """Raises ExportError where ONNX Runtime refuses the file, MissingExtraError without ONNX Runtime."""
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise MissingExtraError("checking a model needs onnxruntime", "serving") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self._signature, self._output = signature, signature.outputs[0].name
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base but Exception
            raise _refused(path, error) from error
        self._path = path

    def __call__(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Model form -> (n, output_size). Raises ExportError where the model cannot take ``inputs``."""
        try:
            outputs = self._session.run([self._output], by_name(self._signature, inputs))
        except Exception as error:
            raise _refused(self._path, error) from error
        answer: NDArray[np.float32] = np.asarray(outputs[0])
        return answer


def largest_error(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    """Largest difference of any value: absolute up to 1, relative above, as float32 has seven digits.

    Raises ExportError for different shapes, or for values that are not finite.
    """
    if expected.shape != actual.shape:
        raise ExportError(
            f"the exported model gives outputs of shape {actual.shape}, the framework {expected.shape}",
            "the model must treat axis 0 as the batch and keep it",
        )
    for who, values in (("framework's", expected), ("exported", actual)):
        if not np.isfinite(values).all():
            raise ExportError(
                f"the {who} model gives outputs that are not finite numbers",
                "lower train.optimizer.lr or set train.clip_norm, and train again",
            )
    if not expected.size:
        return 0.0
    difference = np.abs(actual.astype(np.float64) - expected)
    return float((difference / np.maximum(1.0, np.abs(expected))).max())


def compare(
    model: Path, signature: Signature, inputs: NDArray[Any], outputs: NDArray[np.float32]
) -> float:
    """``largest_error`` of the file ``model`` on ``inputs``, whose right answers are ``outputs``.

    The samples go in by batches and the first few also alone, since a batch must not change an answer.
    """
    return _compare(ExportedModel(model, signature), inputs, outputs)


def measure_parity(
    model: Path,
    signature: Signature,
    inputs: NDArray[Any],
    evaluate: Callable[[NDArray[Any]], NDArray[np.float32]],
    *,
    framework: str,
    limit: float,
) -> Parity:
    """Compare the file with the framework's ``evaluate`` and time one sample with each.

    Raises ExportError where they differ by more than ``limit``.
    """
    exported = ExportedModel(model, signature)
    parts = [inputs[start : start + _CHUNK] for start in range(0, len(inputs), _CHUNK)]
    error = _compare(exported, inputs, np.concatenate([evaluate(part) for part in parts]))
    parity = Parity(
        samples=len(inputs),
        largest_error=error,
        limit=limit,
        framework=framework,
        runtime=exported.runtime,
        framework_milliseconds=_milliseconds(lambda: evaluate(inputs[:1])),
        runtime_milliseconds=_milliseconds(lambda: exported(inputs[:1])),
    )
    return _within(parity, str(model.name))


def verify(folder: Path) -> Parity:
    """Run an unpacked bundle on its own golden inputs and samples; see ``largest_error``.

    Raises ExportError where an answer is off by more than the bundle's limit, StoreError where the
    bundle is damaged.
    """
    manifest = read_manifest(folder)
    inputs, outputs = read_golden(folder, manifest.signature)
    model = folder / MODEL
    if not model.is_file():
        raise StoreError(f"{folder} holds no {MODEL}", _DAMAGED)
    _check_samples(folder, manifest, inputs)
    exported = ExportedModel(model, manifest.signature)
    parity = Parity(
        samples=len(inputs),
        largest_error=_compare(exported, inputs, outputs),
        limit=manifest.parity.limit,
        framework=manifest.parity.framework,
        runtime=exported.runtime,
        framework_milliseconds=manifest.parity.framework_milliseconds,
        runtime_milliseconds=_milliseconds(lambda: exported(inputs[:1])),
    )
    return _within(parity, str(folder))


def _compare(exported: ExportedModel, inputs: NDArray[Any], outputs: NDArray[np.float32]) -> float:
    parts = [inputs[start : start + _CHUNK] for start in range(0, len(inputs), _CHUNK)]
    together = np.concatenate([exported(part) for part in parts])
    few = min(4, len(inputs))
    alone = np.concatenate([exported(inputs[row : row + 1]) for row in range(few)])
    return max(largest_error(outputs, together), largest_error(outputs[:few], alone))


def _check_samples(folder: Path, manifest: BundleManifest, golden: NDArray[Any]) -> None:
    """The natural samples must still become the golden inputs."""
    for number, sample in enumerate(manifest.samples):
        path = folder / sample.file
        try:
            content = path.read_bytes()
            item = msgspec.json.decode(content) if path.suffix == ".json" else content
            encoded = encode(manifest.input, [item])
        except (OSError, msgspec.DecodeError, DataError) as error:
            raise StoreError(f"{path} is damaged: {error}", _DAMAGED) from error
        same = golden[number : number + 1]
        if not len(same) or not close(manifest.signature, encoded, same).all():
            raise ExportError(
                f"{path} becomes another input than when the model was exported",
                "pillow or numpy may have changed: export the model again with `yard up`",
            )


def _within(parity: Parity, what: str) -> Parity:
    if parity.largest_error <= parity.limit:
        return parity
    raise ExportError(
        f"{what} gives other answers than {parity.framework}: they differ by up to "
        f"{parity.largest_error:.3g} on {parity.samples} samples, the limit is {parity.limit:.3g}",
        "look for operations that behave differently in evaluation (random numbers, in-place changes, "
        "a branch on values) and for very large activations; `yard check` tries an export in seconds",
    )


def _milliseconds(call: Callable[[], object]) -> float:
    """Median time of one call, after one to warm up."""
    call()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < _REPEATS and time.perf_counter() - start < _SECONDS:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return round(statistics.median(times) * 1000, 4)


def _refused(path: Path, error: Exception) -> ExportError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ExportError(
        f"onnxruntime cannot run {path}: {reason}",
        "the operation it names must be replaced in the model, or onnxruntime be newer",
    )
