"""PyTorch to ONNX, through torch.export: dynamic batch, no data beside the file, nothing about the machine."""

import copy
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelyard.backends.onnx_file import OPSET, first_line, quiet, write_onnx
from modelyard.backends.pytorch_guests import take_in
from modelyard.backends.pytorch_input import Named
from modelyard.spec.errors import ExportError
from modelyard.spec.signature import Signature

_ANY_BATCH = 2**31


def export_onnx(model: nn.Module, path: Path, signature: Signature) -> None:
    """Write ``model`` in evaluation mode to ``path`` with the names of ``signature``; axis 0 is ``batch``.

    Above 1.5 GB of weights these go to ``<path>.data`` beside it. Raises ExportError naming what
    cannot be expressed, StoreError where the file cannot be written.
    """
    still, _ = take_in(copy.deepcopy(model).cpu().eval())
    still.eval()
    given = tuple(
        torch.zeros(
            (3, *(size or 1 for size in tensor.shape[1:])), dtype=getattr(torch, tensor.dtype)
        )
        for tensor in signature.inputs
    )
    batch: Any = {0: torch.export.Dim("batch")}
    axes: tuple[Any, ...] = (batch,)
    if len(given) > 1:
        still, axes = (
            Named(still, [tensor.name for tensor in signature.inputs]),
            ((batch,) * len(given),),
        )
    try:
        with quiet():
            program = torch.onnx.export(
                still,
                given,
                input_names=[tensor.name for tensor in signature.inputs],
                output_names=[tensor.name for tensor in signature.outputs],
                dynamic_shapes=axes,
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
    size = sum(tensor.nbytes for tensor in still.state_dict().values())
    write_onnx(program.model_proto, path, size)


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
    return f"{type(cause).__name__}: {first_line(cause)}"
