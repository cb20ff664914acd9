"""JAX's operators in ONNX: each takes the values of one traced equation and gives those of its results."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from modelyard.backends.jax_onnx import Dim, Equation, Operator, Value, is_number
from modelyard.backends.jax_shaping import SHAPING, put_in_place

PASSED_ON = frozenset(
    {
        "jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call",
        "custom_vjp_call_jaxpr", "checkpoint", "remat", "remat2",
    }
)  # fmt: skip
"""Operators that are functions: what is in them is put in their place."""


def spread_all(equation: Equation, values: Sequence[Value]) -> list[Value]:
    return [
        equation.graph.spread(value, kind.shape)
        for value, kind in zip(values, equation.before, strict=True)
    ]


def unroll(
    equation: Equation,
    values: list[Value],
    run: Callable[[Any, list[Value]], list[Value]],
) -> list[Value]:
    """A loop of known length, such as an RNN's: its body once for each round."""
    graph, options = equation.graph, equation.options
    fixed, carried = options["num_consts"], options["num_carry"]
    rounds = options["length"]
    constants, state = values[:fixed], values[fixed : fixed + carried]
    rows = values[fixed + carried :]
    kinds = equation.before[fixed + carried :]
    rows = [graph.spread(row, kind.shape) for row, kind in zip(rows, kinds, strict=True)]
    order = range(rounds - 1, -1, -1) if options["reverse"] else range(rounds)
    results: dict[int, list[Value]] = {}
    for place in order:
        index = graph.constant(np.array(place, np.int64))
        taken = [graph.add("Gather", [row, index], row.dims[1:], axis=0) for row in rows]
        found = run(options["jaxpr"], [*constants, *state, *taken])
        state, results[place] = found[:carried], found[carried:]
    stacked = []
    for number, kind in enumerate(equation.after[carried:]):
        parts = [
            graph.shape_to(
                graph.spread(results[place][number], kind.shape[1:]), (1, *kind.shape[1:])
            )
            for place in range(rounds)
        ]
        stacked.append(graph.add("Concat", parts, kind.shape, axis=0))
    return [*state, *stacked]


def _elementwise(operator: str, **options: Any) -> Operator:
    def make(equation: Equation, values: list[Value]) -> list[Value]:
        return [equation.graph.add(operator, values, _joint(values), **options)]

    return make


def _joint(values: Sequence[Value]) -> tuple[Dim, ...]:
    """The shape that broadcasting gives."""
    rank = max(len(value.dims) for value in values)
    filled = [(1,) * (rank - len(value.dims)) + value.dims for value in values]
    return tuple(
        next((dim for dim in dims if not (is_number(dim) and dim == 1)), 1)
        for dims in zip(*filled, strict=True)
    )


def _scalar(equation: Equation, value: float) -> Value:
    return equation.graph.constant(np.array(value, equation.before[0].dtype))


def _chain(*steps: Any) -> Operator:
    """Operators one after the other; a pair is an operator with a number as its second operand."""

    def make(equation: Equation, values: list[Value]) -> list[Value]:
        found = values[0]
        for step in steps:
            operator, more = step if isinstance(step, tuple) else (step, None)
            operands = [found] if more is None else [found, _scalar(equation, more)]
            found = equation.graph.add(operator, operands, found.dims)
        return [found]

    return make


def _not_equal(equation: Equation, values: list[Value]) -> list[Value]:
    (same,) = _elementwise("Equal")(equation, values)
    return [equation.graph.add("Not", [same], same.dims)]


def _square(equation: Equation, values: list[Value]) -> list[Value]:
    return [equation.graph.add("Mul", [values[0], values[0]], values[0].dims)]


def _integer_power(equation: Equation, values: list[Value]) -> list[Value]:
    power = equation.options["y"]
    if power == 2:
        return _square(equation, values)
    return _chain(("Pow", float(power)))(equation, values)


def _negated_erf(equation: Equation, values: list[Value]) -> list[Value]:
    (found,) = _chain("Erf", "Neg", ("Add", 1.0))(equation, values)
    return [found]


def _select(equation: Equation, values: list[Value]) -> list[Value]:
    if len(values) != 3 or equation.before[0].dtype != np.bool_:
        raise equation.refuse("with more than two cases")
    return [equation.graph.add("Where", [values[0], values[2], values[1]], _joint(values))]


def _clamp(equation: Equation, values: list[Value]) -> list[Value]:
    low, value, high = values
    raised = equation.graph.add("Max", [value, low], _joint([value, low]))
    return [equation.graph.add("Min", [raised, high], _joint([raised, high]))]


def _cast(equation: Equation, values: list[Value]) -> list[Value]:
    return [equation.graph.cast(values[0], equation.after[0].dtype)]


def _same(_: Equation, values: list[Value]) -> list[Value]:
    return values


def _reduce(operator: str) -> Operator:
    def make(equation: Equation, values: list[Value]) -> list[Value]:
        axes = equation.graph.numbers(equation.options["axes"])
        shape = equation.after[0].shape
        return [equation.graph.add(operator, [values[0], axes], shape, keepdims=0)]

    return make


def _reduce_truth(operator: str) -> Operator:
    def make(equation: Equation, values: list[Value]) -> list[Value]:
        graph = equation.graph
        (found,) = _reduce(operator)(equation, [graph.cast(values[0], np.int32)])
        return [graph.cast(found, np.bool_)]

    return make


def _arg(operator: str) -> Operator:
    def make(equation: Equation, values: list[Value]) -> list[Value]:
        (axis,) = equation.options["axes"]
        kind = equation.after[0]
        found = equation.graph.add(operator, values, kind.shape, axis=int(axis), keepdims=0)
        return [equation.graph.cast(found, kind.dtype)]

    return make


def _cumulative_sum(equation: Equation, values: list[Value]) -> list[Value]:
    axis = equation.graph.constant(np.array(equation.options["axis"], np.int64))
    backwards = int(equation.options["reverse"])
    shape = equation.after[0].shape
    return [equation.graph.add("CumSum", [values[0], axis], shape, reverse=backwards)]


def _dot(equation: Equation, values: list[Value]) -> list[Value]:
    """Batch axes first, then the free ones, then those that are summed: MatMul does the rest."""
    (left_sum, right_sum), (left_batch, right_batch) = equation.options["dimension_numbers"]
    left, right = (kind.shape for kind in equation.before)
    left_free = [a for a in range(len(left)) if a not in (*left_sum, *left_batch)]
    right_free = [a for a in range(len(right)) if a not in (*right_sum, *right_batch)]
    graph, shape = equation.graph, equation.after[0].shape
    first = graph.turn(values[0], (*left_batch, *left_free, *left_sum))
    second = graph.turn(values[1], (*right_batch, *right_sum, *right_free))
    summed = math.prod(int(right[axis]) for axis in right_sum)
    if not left_batch:  # any number of free axes on the left is MatMul's own way
        first = graph.shape_to(first, (*(left[a] for a in left_free), summed))
        columns = math.prod(right[axis] for axis in right_free)
        second = graph.shape_to(second, (summed, columns))
        made = (*(left[a] for a in left_free), columns)
        return [graph.shape_to(graph.add("MatMul", [first, second], made), shape)]
    shared = tuple(left[axis] for axis in left_batch)
    rows = math.prod(left[axis] for axis in left_free)
    columns = math.prod(right[axis] for axis in right_free)
    first = graph.shape_to(first, (*shared, rows, summed))
    second = graph.shape_to(second, (*shared, summed, columns))
    found = graph.add("MatMul", [first, second], (*shared, rows, columns))
    return [graph.shape_to(found, shape)]


def _convolution(equation: Equation, values: list[Value]) -> list[Value]:
    options, graph = equation.options, equation.graph
    layout = options["dimension_numbers"]
    if any(step != 1 for step in options["lhs_dilation"]) or options["batch_group_count"] != 1:
        raise equation.refuse("of a transposed convolution")
    given = graph.turn(values[0], layout.lhs_spec)
    kernel = graph.turn(values[1], layout.rhs_spec)
    shape = tuple(equation.after[0].shape[axis] for axis in layout.out_spec)
    sides = options["padding"]
    found = graph.add(
        "Conv",
        [given, kernel],
        shape,
        strides=list(options["window_strides"]),
        dilations=list(options["rhs_dilation"]),
        pads=[int(s[0]) for s in sides] + [int(s[1]) for s in sides],
        group=options["feature_group_count"],
    )
    return [graph.turn(found, np.argsort(layout.out_spec).tolist())]


def _pool(operator: str) -> Operator:
    """A window over some axes; the two others become samples and channels."""

    def make(equation: Equation, values: list[Value]) -> list[Value]:
        options, graph = equation.options, equation.graph
        window, strides, sides = (
            options[key] for key in ("window_dimensions", "window_strides", "padding")
        )
        if any(step != 1 for step in (*options["base_dilation"], *options["window_dilation"])):
            raise equation.refuse("with a dilated window")
        moved = [a for a in range(len(window)) if (window[a], strides[a]) != (1, 1)]
        still = [a for a in range(len(window)) if a not in moved]
        if len(still) != 2 or any(tuple(sides[axis]) != (0, 0) for axis in still):
            raise equation.refuse("over other than all axes but two")
        order = (*still, *moved)
        found = graph.add(
            operator,
            [graph.turn(values[0], order)],
            tuple(equation.after[0].shape[axis] for axis in order),
            kernel_shape=[int(window[axis]) for axis in moved],
            strides=[int(strides[axis]) for axis in moved],
            pads=[int(sides[a][0]) for a in moved] + [int(sides[a][1]) for a in moved],
            **({"count_include_pad": 1} if operator == "AveragePool" else {}),
        )
        if operator == "AveragePool":  # JAX asks for the sum
            size = math.prod(int(window[axis]) for axis in moved)
            found = graph.add("Mul", [found, _scalar(equation, size)], found.dims)
        return [graph.turn(found, np.argsort(order).tolist())]

    return make


_UNARY = {
    "neg": "Neg", "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "sqrt": "Sqrt",
    "abs": "Abs", "sign": "Sign", "floor": "Floor", "ceil": "Ceil", "erf": "Erf", "sin": "Sin",
    "cos": "Cos", "not": "Not", "round": "Round",
}  # fmt: skip
_BINARY = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max",
    "min": "Min", "pow": "Pow", "and": "And", "or": "Or", "xor": "Xor", "eq": "Equal", "lt": "Less",
    "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual",
}  # fmt: skip
_THIN: dict[str, Operator] = {
    **{name: _elementwise(operator) for name, operator in (_UNARY | _BINARY).items()},
    "rem": _elementwise("Mod", fmod=1),
    "ne": _not_equal,
    "square": _square,
    "integer_pow": _integer_power,
    "rsqrt": _chain("Sqrt", "Reciprocal"),
    "log1p": _chain(("Add", 1.0), "Log"),
    "expm1": _chain("Exp", ("Sub", 1.0)),
    "erfc": _negated_erf,
    "select_n": _select,
    "clamp": _clamp,
    "convert_element_type": _cast,
    "broadcast_in_dim": put_in_place,
    "stop_gradient": _same,
    "copy": _same,
    "copy_p": _same,
    "reduce_precision": _same,
    "optimization_barrier": _same,
}
_WHOLE: dict[str, Operator] = {
    **SHAPING,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_and": _reduce_truth("ReduceMin"),
    "reduce_or": _reduce_truth("ReduceMax"),
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "cumsum": _cumulative_sum,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "reduce_window_max": _pool("MaxPool"),
    "reduce_window_sum": _pool("AveragePool"),
}
OPERATORS: dict[str, tuple[Operator, bool]] = {
    **{name: (operator, True) for name, operator in _THIN.items()},
    **{name: (operator, False) for name, operator in _WHOLE.items()},
}
"""Name of a JAX operator -> how it is written, and whether it takes thin values."""
