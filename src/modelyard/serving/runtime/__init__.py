"""The runtimes' table: what runs a bundle's model."""

from modelyard.spec.plugins import Plugin

BUILT_IN = {
    "onnxruntime": Plugin(
        "modelyard.serving.runtime.onnxruntime:OnnxRuntime", "ONNX Runtime on CPU", "serving"
    ),
}
