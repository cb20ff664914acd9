"""A Keras model to ONNX: dynamic batch, channels first as samples are, nothing about the machine."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import onnx

from modelyard.backends.keras_model import Subject
from modelyard.spec.errors import ExportError, MissingExtraError, from_os_error
from modelyard.spec.signature import Signature

OPSET = 18
"""Known to ONNX Runtime since 1.14."""
_LAST = (2, 3, 1)


def export_onnx(subject: Subject, path: Path, signature: Signature) -> None:
    """Write the model in evaluation mode to ``path`` with the names of ``signature``; axis 0 is ``batch``.

    Raises ExportError naming what cannot be expressed, StoreError where the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _quiet():
            _wrapped(subject).export(
                str(temporary),
                format="onnx",
                verbose=False,
                opset_version=OPSET,
                input_signature=[_spec(subject)],
            )
        _finish(temporary, path, signature)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"exporting from Keras on {keras.backend.backend()} needs the package {error.name!r}",
            "keras",
        ) from error
    except OSError as error:
        raise from_os_error(error) from error
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported file is not valid ONNX: {_first_line(error)}") from error
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            f"the model cannot be written as ONNX: {type(error).__name__}: {_first_line(error)}",
            "replace that operation in the model's call, or move it out of the model",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _wrapped(subject: Subject) -> Any:
    """The model behind an input as samples are; its variables are the same."""
    given = keras.Input(subject.shape, dtype=subject.dtype, name="given")
    turned = keras.layers.Permute((2, 3, 1))(given) if subject.channels_last else given
    return keras.Model(given, subject.model(turned, training=False))


def _spec(subject: Subject) -> Any:
    return keras.InputSpec(dtype=subject.dtype, shape=(None, *subject.shape), name="given")


def _finish(temporary: Path, path: Path, signature: Signature) -> None:
    proto = onnx.load(temporary)
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
    _strip(proto)
    onnx.save(proto, temporary)
    onnx.checker.check_model(temporary)
    temporary.replace(path)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == old:
                    names[place] = new
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.name == old:
            value.name = new


def _strip(proto: onnx.ModelProto) -> None:
    """Leave out the exporter's notes, which may name this machine."""
    for item in (proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    proto.ClearField("metadata_props")
    proto.ClearField("doc_string")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of the exporter reaches the terminal; what matters comes as an exception."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"
