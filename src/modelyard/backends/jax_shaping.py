"""JAX's operators that move numbers about, in ONNX: shapes, slices, rows of tables."""

import numpy as np

from modelyard.backends.jax_onnx import Dim, Equation, Operator, Value, is_number


def put_in_place(equation: Equation, values: list[Value]) -> list[Value]:
    """Only the axes are put in their places; who needs the full size spreads it."""
    places = equation.options["broadcast_dimensions"]
    dims: list[Dim] = [1] * len(equation.after[0].shape)
    for axis, place in enumerate(places):
        dims[place] = values[0].dims[axis]
    return [equation.graph.shape_to(values[0], dims)]


def _reshape(equation: Equation, values: list[Value]) -> list[Value]:
    return [equation.graph.shape_to(values[0], equation.after[0].shape)]


def _transpose(equation: Equation, values: list[Value]) -> list[Value]:
    return [equation.graph.turn(values[0], equation.options["permutation"])]


def _concatenate(equation: Equation, values: list[Value]) -> list[Value]:
    axis = equation.options["dimension"]
    return [equation.graph.add("Concat", values, equation.after[0].shape, axis=axis)]


def _slice(equation: Equation, values: list[Value]) -> list[Value]:
    options, dims = equation.options, equation.before[0].shape
    starts, ends = options["start_indices"], options["limit_indices"]
    steps = options["strides"] or (1,) * len(dims)
    axes = [
        axis
        for axis in range(len(dims))
        if not (
            is_number(starts[axis])
            and starts[axis] == 0
            and steps[axis] == 1
            and ends[axis] == dims[axis]
        )
    ]
    if not axes:
        return values
    if not all(is_number(starts[axis]) and is_number(ends[axis]) for axis in axes):
        raise equation.refuse("takes some samples of a batch and leaves others")
    numbers = [[int(part[axis]) for axis in axes] for part in (starts, ends)]
    given = [*numbers, axes, [int(steps[axis]) for axis in axes]]
    operands = [values[0], *map(equation.graph.numbers, given)]
    return [equation.graph.add("Slice", operands, equation.after[0].shape)]


def _dynamic_slice(equation: Equation, values: list[Value]) -> list[Value]:
    """Where what is taken is known."""
    sizes, dims = equation.options["slice_sizes"], equation.before[0].shape
    starts = values[1:]
    graph, found = equation.graph, values[0]
    for axis, (start, size, dim) in enumerate(zip(starts, sizes, dims, strict=True)):
        if size == dim:
            continue
        if start.constant is None or not is_number(dim):
            raise equation.refuse("begins at a place that depends on the input")
        begin = min(max(int(np.asarray(start.constant)), 0), int(dim) - int(size))
        shape = (*found.dims[:axis], size, *found.dims[axis + 1 :])
        places = [[begin], [begin + int(size)], [axis]]
        found = graph.add("Slice", [found, *map(graph.numbers, places)], shape)
    return [found]


def _pad(equation: Equation, values: list[Value]) -> list[Value]:
    sides = equation.options["padding_config"]
    if any(inner or low < 0 or high < 0 for low, high, inner in sides):
        raise equation.refuse("with gaps or negative sides")
    pads = equation.graph.numbers([s[0] for s in sides] + [s[1] for s in sides])
    return [equation.graph.add("Pad", [values[0], pads, values[1]], equation.after[0].shape)]


def _split(equation: Equation, values: list[Value]) -> list[Value]:
    sizes = equation.graph.numbers([int(size) for size in equation.options["sizes"]])
    shapes = [kind.shape for kind in equation.after]
    axis = equation.options["axis"]
    return equation.graph.add_many("Split", [values[0], sizes], shapes, axis=axis)


def _iota(equation: Equation, _: list[Value]) -> list[Value]:
    kind, axis = equation.after[0], equation.options["dimension"]
    if not is_number(kind.shape[axis]):
        raise equation.refuse("counts the samples of a batch")
    dims = [1] * len(kind.shape)
    dims[axis] = int(kind.shape[axis])
    return [equation.graph.constant(np.arange(dims[axis], dtype=kind.dtype).reshape(dims))]


def _samples(equation: Equation, _: list[Value]) -> list[Value]:
    graph = equation.graph
    whole = graph.cast(graph.samples(equation.options["dim"]), equation.after[0].dtype)
    return [graph.shape_to(whole, ())]


def _piece(equation: Equation, values: list[Value]) -> Value:
    graph, found = equation.graph, values[0]
    sizes = equation.options["slice_sizes"]
    places = np.asarray(values[1].constant).tolist()
    for axis, place in zip(
        equation.options["dimension_numbers"].start_index_map, places, strict=True
    ):
        dim, size = found.dims[axis], sizes[axis]
        if size == dim:
            continue
        if not (is_number(dim) and is_number(size)):
            raise equation.refuse("takes some samples of a batch and leaves others")
        begin = min(max(int(place), 0), int(dim) - int(size))
        ends = [[begin], [begin + int(size)], [axis]]
        shape = (*found.dims[:axis], int(size), *found.dims[axis + 1 :])
        found = graph.add("Slice", [found, *map(graph.numbers, ends)], shape)
    return graph.shape_to(found, equation.after[0].shape)


def _gather(equation: Equation, values: list[Value]) -> list[Value]:
    """Rows of a table by their numbers, as an embedding does; a piece at a known place, as ``x[..., :4]``."""
    numbers, dims = equation.options["dimension_numbers"], equation.before[0].shape
    index = equation.before[1].shape
    if values[1].constant is not None and len(index) == 1 and not numbers.operand_batching_dims:
        return [_piece(equation, values)]
    collapsed = numbers.collapsed_slice_dims
    sizes = equation.options["slice_sizes"]
    if len(collapsed) != 1 or numbers.start_index_map != collapsed or numbers.operand_batching_dims:
        raise equation.refuse("takes more than rows of one axis")
    axis, count = collapsed[0], len(index) - 1
    whole = all(
        size == dim
        for place, (size, dim) in enumerate(zip(sizes, dims, strict=True))
        if place != axis
    )
    expected = (*range(axis), *range(axis + count, len(dims) - 1 + count))
    if not whole or tuple(numbers.offset_dims) != expected or sizes[axis] != 1:
        raise equation.refuse("takes parts of rows")
    places = equation.graph.shape_to(values[1], index[:-1])
    return [equation.graph.add("Gather", [values[0], places], equation.after[0].shape, axis=axis)]


SHAPING: dict[str, Operator] = {
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "pad": _pad,
    "split": _split,
    "iota": _iota,
    "dim_as_value": _samples,
    "gather": _gather,
}
"""These take values in their full size."""
