"""A Keras model to ONNX: dynamic batch, channels first as samples are, nothing about the machine."""

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx

from modelyard.backends.keras_model import Subject
from modelyard.backends.onnx_file import OPSET, first_line, quiet, write_onnx
from modelyard.spec.errors import ExportError, MissingExtraError, from_os_error
from modelyard.spec.signature import Signature, Tensor


def export_onnx(subject: Subject, path: Path, signature: Signature) -> None:
    """Write the model in evaluation mode to ``path`` with the names of ``signature``; axis 0 is ``batch``.

    Raises ExportError naming what cannot be expressed, StoreError where the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with quiet():
            _wrapped(subject, signature).export(
                str(temporary),
                format="onnx",
                verbose=False,
                opset_version=OPSET,
                input_signature=_specs(signature),
            )
        proto = _named(onnx.load(temporary), signature)
        _write_out(proto.graph)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"exporting from Keras on {keras.backend.backend()} needs the package {error.name!r}",
            "keras",
        ) from error
    except OSError as error:
        raise from_os_error(error) from error
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"the model cannot be written as ONNX: {type(error).__name__}: {first_line(error)}",
            "replace that operation in the model's call, or move it out of the model",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    write_onnx(proto, path, sum(len(tensor.raw_data) for tensor in proto.graph.initializer))


def _wrapped(subject: Subject, signature: Signature) -> Any:
    """The model behind inputs as samples are; its variables are the same."""
    given = {
        t.name: keras.Input(t.shape[1:], dtype=t.dtype, name=_given(t)) for t in signature.inputs
    }
    last, named = subject.channels_last, dict(given)
    for name, tensor in given.items():
        if last and len(tensor.shape) == 4:
            named[name] = keras.layers.Permute((2, 3, 1))(tensor)
    inputs: Any = named if len(named) > 1 else next(iter(named.values()))
    return keras.Model(list(given.values()), subject.model(inputs, training=False))


def _given(tensor: Tensor) -> str:
    """A name that is no layer's of the model."""
    return f"given_{tensor.name}"


def _specs(signature: Signature) -> list[Any]:
    specs = [
        keras.InputSpec(dtype=t.dtype, shape=(None, *t.shape[1:]), name=_given(t))
        for t in signature.inputs
    ]
    return [specs] if len(specs) > 1 else specs


def _named(proto: onnx.ModelProto, signature: Signature) -> onnx.ModelProto:
    graph = proto.graph
    if len(graph.input) != len(signature.inputs) or len(graph.output) != 1:
        raise ExportError(
            f"the exported model has {len(graph.input)} inputs and {len(graph.output)} outputs, "
            f"not {len(signature.inputs)} and one"
        )
    found = {value.name.partition(":")[0]: value.name for value in graph.input}
    for value, tensor in zip(list(graph.input), signature.inputs, strict=True):
        _rename(graph, found.get(_given(tensor), value.name), tensor.name)
    _rename(graph, graph.output[0].name, signature.outputs[0].name)
    for value in (*graph.input, graph.output[0]):
        batch = value.type.tensor_type.shape.dim[0]
        if batch.HasField("dim_value"):
            raise ExportError(
                f"the exported model takes batches of {batch.dim_value} only",
                "use the size of the input's first axis (ops.shape(x)[0]) and no number in its place",
            )
        batch.dim_param = "batch"
    return proto


def _write_out(graph: onnx.GraphProto) -> None:
    """Of the error function's complement, which ONNX has not, one minus the error function: GELU needs it."""
    one, places = "one", [i for i, node in enumerate(graph.node) if node.op_type == "Erfc"]
    if not places:
        return
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.float32), one))
    for place in reversed(places):
        node = graph.node[place]
        between = f"{node.output[0]}/erf"
        graph.node.insert(
            place + 1, onnx.helper.make_node("Sub", [one, between], list(node.output))
        )
        node.op_type, node.output[0] = "Erf", between


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.name == old:
            value.name = new
