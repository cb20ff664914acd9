"""ONNX Runtime on CPU: runs ``model.onnx`` of a bundle."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from modelyard.bundle.format import MODEL
from modelyard.serving.runtime.base import Runtime
from modelyard.spec.errors import ServingError
from modelyard.spec.signature import Signature, Tensor

_DTYPES = {
    "tensor(bool)": "bool",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": "object",
    **{
        f"tensor({sign}int{bits})": f"{sign}int{bits}"
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


class OnnxRuntime(Runtime):
    """One session; ``run`` releases the GIL, so that the event loop goes on while it computes."""

    def open(self, folder: Path, signature: Signature, *, threads: int) -> None:
        path = folder / MODEL
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that wait for work must not burn a core that another replica could use.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exception classes share no base but Exception
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ServingError(
                f"{path} cannot be loaded: {reason}", "export the bundle again with `yard up`"
            ) from error
        _check(path, "input", signature.inputs, self._session.get_inputs())
        _check(path, "output", signature.outputs, self._session.get_outputs())
        self._outputs = [tensor.name for tensor in signature.outputs]
        self._texts = {tensor.name for tensor in signature.inputs if tensor.dtype == "object"}

    def run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for name in self._texts:
            inputs = inputs | {name: _as_text(inputs[name])}
        outputs = self._session.run(self._outputs, inputs)
        return dict(zip(self._outputs, outputs, strict=True))


def _check(path: Path, kind: str, expected: tuple[Tensor, ...], found: list[Any]) -> None:
    """The file must have the tensors that the signature promises."""
    types = {node.name: _DTYPES.get(node.type, node.type) for node in found}
    for tensor in expected:
        if types.get(tensor.name) != tensor.dtype:
            has = ", ".join(f"{name} {dtype}" for name, dtype in types.items())
            raise ServingError(
                f"{path} does not fit its signature: {kind} {tensor.name} {tensor.dtype} is promised, the model has {has}",
                "export the bundle again with `yard up`",
            )


def _as_text(array: NDArray[Any]) -> NDArray[Any]:
    """ONNX strings are text; the wire carries bytes."""
    flat = [item.decode() if isinstance(item, bytes) else item for item in array.ravel()]
    result = np.empty(len(flat), dtype=object)
    result[:] = flat
    return result.reshape(array.shape)
