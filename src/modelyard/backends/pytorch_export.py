"""PyTorch to ONNX, through torch.export: dynamic batch, no data beside the file, nothing about the machine."""

import contextlib
import copy
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import nn

from modelyard.backends.pytorch_guests import take_in
from modelyard.backends.pytorch_models import input_type
from modelyard.spec.errors import ExportError, from_os_error
from modelyard.spec.signature import Signature

OPSET = 18
"""The exporter's own; ONNX Runtime has known it since 1.14."""
_ONE_FILE = 1_500_000_000
"""Bytes of weights up to which the file holds them itself; protobuf ends at 2 GiB."""

_ANY_BATCH = 2**31


def export_onnx(model: nn.Module, path: Path, signature: Signature) -> None:
    """Write ``model`` in evaluation mode to ``path`` with the names of ``signature``; axis 0 is ``batch``.

    Above 1.5 GB of weights these go to ``<path>.data`` beside it. Raises ExportError naming what
    cannot be expressed, StoreError where the file cannot be written.
    """
    still, _ = take_in(copy.deepcopy(model).cpu().eval())
    still.eval()
    shape = (3, *(size or 1 for size in signature.inputs[0].shape[1:]))
    try:
        with _quiet():
            program = torch.onnx.export(
                still,
                (torch.zeros(shape, dtype=input_type(signature)),),
                input_names=[tensor.name for tensor in signature.inputs],
                output_names=[tensor.name for tensor in signature.outputs],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"the model cannot be written as ONNX: {_reason(error)}",
            "replace that operation in forward, or move it out of the model",
        ) from error
    if program is None:
        raise ExportError("the exporter of PyTorch gave no program", "upgrade torch")
    _refuse_fixed_batch(program)
    _write(program.model_proto, path, still)


def _refuse_fixed_batch(program: torch.onnx.ONNXProgram) -> None:
    """The exporter says nothing where forward works only for some numbers of samples: it fixes them."""
    graph = program.model_proto.graph
    axes = [tensor.type.tensor_type.shape.dim[0] for tensor in (*graph.input, *graph.output)]
    exported = program.exported_program
    ranges = exported.range_constraints.values() if exported else ()
    if all(axis.dim_param for axis in axes) and all(
        found.lower <= 1 and found.upper >= _ANY_BATCH for found in ranges
    ):
        return
    raise ExportError(
        "the model cannot be exported for any batch size: forward does different things for different numbers of samples",
        "let forward treat each sample by itself: no branch on x.shape[0], no reshape that mixes samples",
    )


def _write(proto: onnx.ModelProto, path: Path, model: nn.Module) -> None:
    _strip(proto)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    temporary = path.with_name(f".{path.name}.part")
    try:
        if size > _ONE_FILE:
            onnx.save(proto, path, save_as_external_data=True, location=f"{path.name}.data")
            onnx.checker.check_model(path)
        else:
            onnx.save(proto, temporary)
            onnx.checker.check_model(temporary)
            os.replace(temporary, path)  # noqa: PTH105
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported file is not valid ONNX: {_reason(error)}") from error
    except OSError as error:
        raise from_os_error(error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _strip(proto: onnx.ModelProto) -> None:
    """Leave out the exporter's notes: stack traces with paths of this machine, which differ elsewhere."""
    functions = [node for function in proto.functions for node in function.node]
    for item in (proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    for item in (*proto.graph.value_info, *proto.graph.initializer, *functions):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    proto.ClearField("metadata_props")


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


def _reason(error: BaseException) -> str:
    """One line: the operator where one is named, else the first line of the innermost cause."""
    text, cause = "", error
    while True:
        text += f"{cause}\n"
        if cause.__cause__ is None:
            break
        cause = cause.__cause__
    if operator := re.search(r"OpOverload\(op='([^']+)'", text):
        return f"the operator {operator[1]} has no ONNX form"
    if type(cause).__name__ == "GuardOnDataDependentSymNode":
        return "forward takes a branch that depends on the values of its input"
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else 'no reason given'}"
