"""JAX to ONNX: the model is traced for any batch and written node by node; no data beside the file."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from modelyard.backends.jax_model import Arrays, Functional, outlines_of
from modelyard.backends.jax_onnx import Equation, Graph, Value, is_number
from modelyard.backends.jax_operators import OPERATORS, PASSED_ON, spread_all, unroll
from modelyard.backends.onnx_file import write_onnx
from modelyard.spec.errors import ExportError
from modelyard.spec.signature import Signature


def export_onnx(
    model: Functional, parameters: Arrays, kept: Arrays, path: Path, signature: Signature
) -> None:
    """Write the model as in service to ``path`` with the names of ``signature``; axis 0 is ``batch``.

    Above 1.5 GB of weights these go to ``<path>.data`` beside it. Raises ExportError naming what
    cannot be expressed, StoreError where the file cannot be written.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    outlines = outlines_of(signature, batch)

    def forward(*arrays: jax.Array) -> Any:
        named = dict(zip(outlines, arrays, strict=True))
        given = named if len(named) > 1 else arrays[0]
        return model.forward(parameters, kept, given, None)[0]

    try:
        traced = jax.make_jaxpr(forward)(*outlines.values())
    except Exception as error:
        raise _untraceable(error) from error
    graph = Graph(batch)
    starts = [
        graph.open_input(name, outline.shape, integers=outline.dtype == np.int32)
        for name, outline in outlines.items()
    ]
    (answer,) = _walk(graph, traced.jaxpr, [graph.constant(c) for c in traced.consts], starts)
    answer = graph.spread(answer, traced.out_avals[0].shape)
    write_onnx(graph.proto(answer, signature), path, sum(int(p.nbytes) for p in parameters))


def _walk(graph: Graph, jaxpr: Any, constants: list[Value], inputs: list[Value]) -> list[Value]:
    """Put one traced function into the graph; its results."""
    known: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: Any) -> Value:
        if hasattr(variable, "val"):  # a literal
            return graph.constant(np.asarray(variable.val))
        return known[variable]

    for traced in jaxpr.eqns:
        results = _one(graph, traced, [read(variable) for variable in traced.invars])
        known |= dict(zip(traced.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _one(graph: Graph, traced: Any, values: list[Value]) -> list[Value]:
    name, options = traced.primitive.name, traced.params
    equation = Equation(
        graph,
        name,
        options,
        tuple(variable.aval for variable in traced.invars),
        tuple(variable.aval for variable in traced.outvars),
    )
    if name == "scan":
        return unroll(equation, values, lambda body, given: _inner(graph, body, given))
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in options and name in PASSED_ON:
            return _inner(graph, options[key], values)
    if name != "broadcast_in_dim" and (folded := _folded(traced, values)) is not None:
        return [graph.constant(array) for array in folded]
    if name not in OPERATORS:
        raise ExportError(
            f"the model cannot be written as ONNX: the operator {name} has no ONNX form",
            "replace that operation in the model, or move it out of the model",
        )
    operator, thin = OPERATORS[name]
    return operator(equation, values if thin else spread_all(equation, values))


def _inner(graph: Graph, body: Any, values: list[Value]) -> list[Value]:
    closed = hasattr(body, "consts")
    constants = [graph.constant(c) for c in body.consts] if closed else []
    return _walk(graph, body.jaxpr if closed else body, constants, values)


def _folded(traced: Any, values: list[Value]) -> list[Any] | None:
    """The results, where they do not depend on the input."""
    shapes = [dim for variable in traced.outvars for dim in getattr(variable.aval, "shape", ())]
    if any(value.constant is None for value in values) or not all(map(is_number, shapes)):
        return None
    arrays = [
        value.constant
        if value.dims == variable.aval.shape
        else np.broadcast_to(np.asarray(value.constant), variable.aval.shape)
        for value, variable in zip(values, traced.invars, strict=True)
    ]
    arrays = [jax.numpy.asarray(array) for array in arrays]
    found = traced.primitive.bind(*arrays, **traced.params)
    return list(found) if traced.primitive.multiple_results else [found]


def _untraceable(error: Exception) -> ExportError:
    lines = str(error).strip().splitlines() or ["no reason given"]
    kind = type(error).__name__
    if "_DimExpr" in lines[0]:
        return ExportError(
            f"the model cannot be exported for any batch size: {kind}: {lines[0]}",
            "write x.shape[0] in place of len(x), and -1 in place of int(x.shape[0])",
        )
    if "batch" in str(error) or "ymbolic" in str(error) or "Inconclusive" in kind:
        return ExportError(
            f"the model cannot be exported for any batch size: {kind}: {lines[0]}",
            "let the model treat each sample by itself: no branch on x.shape[0], no reshape that mixes samples",
        )
    return ExportError(
        f"the model cannot be written as ONNX: {kind}: {lines[0]}",
        "replace that operation in the model, or move it out of the model",
    )
