"""What every export to ONNX ends with: a file that is whole or absent, and says nothing of this machine."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx

from modelyard.spec.errors import ExportError, from_os_error

OPSET = 18
"""Known to ONNX Runtime since 1.14."""
_ONE_FILE = 1_500_000_000
"""Bytes of weights up to which the file holds them itself; protobuf ends at 2 GiB."""


def write_onnx(proto: onnx.ModelProto, path: Path, weights: int) -> None:
    """Write and check; above 1.5 GB of ``weights`` these go to ``<path>.data`` beside it.

    Raises ExportError where the file is not valid ONNX, StoreError where it cannot be written.
    """
    _strip(proto)
    temporary = path.with_name(f".{path.name}.part")
    try:
        if weights > _ONE_FILE:
            onnx.save(proto, path, save_as_external_data=True, location=f"{path.name}.data")
            onnx.checker.check_model(path)
        else:
            onnx.save(proto, temporary)
            onnx.checker.check_model(temporary)
            os.replace(temporary, path)  # noqa: PTH105
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported file is not valid ONNX: {first_line(error)}") from error
    except OSError as error:
        raise from_os_error(error, path) from error
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
    proto.ClearField("doc_string")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing of an exporter reaches the terminal; what matters comes as an exception."""
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


def first_line(error: BaseException) -> str:
    """Of what an error says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"
