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
from modelyard.spec.signature import Signature


def export_onnx(subject: Subject, path: Path, signature: Signature) -> None:
    """Write the model in evaluation mode to ``path`` with the names of ``signature``; axis 0 is ``batch``.

    Raises ExportError naming what cannot be expressed, StoreError where the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with quiet():
            _wrapped(subject).export(
                str(temporary),
                format="onnx",
                verbose=False,
                opset_version=OPSET,
                input_signature=[_spec(subject)],
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


def _wrapped(subject: Subject) -> Any:
    """The model behind an input as samples are; its variables are the same."""
    given = keras.Input(subject.shape, dtype=subject.dtype, name="given")
    turned = keras.layers.Permute((2, 3, 1))(given) if subject.channels_last else given
    return keras.Model(given, subject.model(turned, training=False))


def _spec(subject: Subject) -> Any:
    return keras.InputSpec(dtype=subject.dtype, shape=(None, *subject.shape), name="given")


def _named(proto: onnx.ModelProto, signature: Signature) -> onnx.ModelProto:
    graph = proto.graph
    if len(graph.input) != 1 or len(graph.output) != 1:
        raise ExportError(
            f"the exported model has {len(graph.input)} inputs and {len(graph.output)} outputs, not one each"
        )
    _rename(graph, graph.input[0].name, signature.inputs[0].name)
    _rename(graph, graph.output[0].name, signature.outputs[0].name)
    for value in (graph.input[0], graph.output[0]):
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
