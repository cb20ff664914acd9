"""An ONNX graph under construction: values that are nodes or constants, and how they are reshaped.

Constants stay NumPy until a node needs them, so that whatever does not depend on the input is worked
out here. A value may be *thin*: its axes of one element stand for more, as in NumPy's broadcasting;
elementwise nodes take it as it is, others have it spread out first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from modelyard.backends.onnx_file import OPSET
from modelyard.spec.errors import ExportError

IR_VERSION = 10
Dim = Any
"""A number, or JAX's symbol for a multiple of the batch."""


@dataclass(frozen=True, eq=False)
class Value:
    """What one JAX variable is in the graph."""

    dims: tuple[Dim, ...]
    """As it lies in memory: an axis of a thin value is 1 where JAX has more."""
    name: str = ""
    constant: Any = None
    turned: "tuple[Value, tuple[int, ...]] | None" = None
    """It is that value with its axes in that order: turning it back costs nothing."""


def is_number(dim: Dim) -> bool:
    return isinstance(dim, int | np.integer)


class Graph:
    """Nodes in order, and the constants they use."""

    def __init__(self, batch: Dim) -> None:
        self._batch = batch
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._kept: dict[Any, str] = {}
        self._alive: list[Any] = []
        self._samples = ""
        self._input = ""

    def open_input(self, name: str, dims: tuple[Dim, ...], *, integers: bool) -> Value:
        """The input as JAX sees it: it counts in 32 bits."""
        self._input = name
        given = Value(dims, name)
        return self.cast(given, np.dtype(np.int32)) if integers else given

    def add(
        self, operator: str, inputs: Sequence[Value], dims: tuple[Dim, ...], **options: Any
    ) -> Value:
        return self.add_many(operator, inputs, [dims], **options)[0]

    def add_many(
        self,
        operator: str,
        inputs: Sequence[Value],
        outputs: Sequence[tuple[Dim, ...]],
        **options: Any,
    ) -> list[Value]:
        names = [f"{operator}_{len(self.nodes)}_{place}" for place in range(len(outputs))]
        node = helper.make_node(operator, [self._name(v) for v in inputs], names, **options)
        self.nodes.append(node)
        return [Value(dims, name) for dims, name in zip(outputs, names, strict=True)]

    def constant(self, array: Any) -> Value:
        return Value(tuple(np.shape(array)), constant=array)

    def numbers(self, values: Sequence[int]) -> Value:
        return self.constant(np.array(values, np.int64))

    def cast(self, value: Value, dtype: Any) -> Value:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.add("Cast", [value], value.dims, to=kind)

    def turn(self, value: Value, order: Sequence[int]) -> Value:
        """Axes in another order."""
        order = tuple(int(axis) for axis in order)
        if value.turned is not None:
            value, before = value.turned
            order = tuple(before[axis] for axis in order)
        if order == tuple(range(len(order))):
            return value
        if value.constant is not None:
            return self.constant(np.transpose(np.asarray(value.constant), order))
        dims = tuple(value.dims[axis] for axis in order)
        made = self.add("Transpose", [value], dims, perm=list(order))
        return Value(dims, made.name, turned=(value, order))

    def shape_to(self, value: Value, dims: Sequence[Dim]) -> Value:
        """The same numbers in another shape."""
        target = tuple(dims)
        if target == value.dims:
            return value
        if value.constant is not None and all(map(is_number, target)):
            return self.constant(np.reshape(np.asarray(value.constant), target))
        open_axes = [axis for axis, dim in enumerate(target) if not is_number(dim)]
        if len(open_axes) > 1:
            return self.add("Reshape", [value, self.sizes(target)], target)
        sizes = [int(dim) if is_number(dim) else -1 for dim in target]
        return self.add("Reshape", [value, self.numbers(sizes)], target)

    def spread(self, value: Value, dims: Sequence[Dim]) -> Value:
        """A thin value in its full size."""
        target = tuple(dims)
        if value.dims == target:
            return value
        if value.constant is not None and all(map(is_number, target)):
            return self.constant(np.broadcast_to(np.asarray(value.constant), target))
        return self.add("Expand", [value, self.sizes(target)], target)

    def sizes(self, dims: Sequence[Dim]) -> Value:
        """A shape as a tensor; multiples of the batch are asked of the input."""
        if all(map(is_number, dims)):
            return self.numbers([int(dim) for dim in dims])
        parts = [self.numbers([int(dim)]) if is_number(dim) else self.samples(dim) for dim in dims]
        return self.add("Concat", parts, (len(parts),), axis=0)

    def samples(self, dim: Dim) -> Value:
        """``dim``, a multiple of the batch, as a tensor of one number."""
        factor = dim // self._batch
        if not is_number(factor) or factor * self._batch != dim:
            raise ExportError(
                f"the model cannot be exported for any batch size: a shape in it is {dim}",
                "let the model treat each sample by itself",
            )
        if not self._samples:
            whole = self.add("Shape", [Value((), self._input)], (1,), start=0, end=1)
            self._samples = whole.name
        found = Value((1,), self._samples)
        return found if factor == 1 else self.add("Mul", [found, self.numbers([int(factor)])], (1,))

    def _name(self, value: Value) -> str:
        if value.constant is None:
            return value.name
        key = id(value.constant)
        if key not in self._kept:
            array: NDArray[Any] = np.ascontiguousarray(value.constant).reshape(value.dims)
            small = array.nbytes <= 64
            same = (array.dtype.str, array.shape, array.tobytes()) if small else key
            if same not in self._kept:
                self._kept[same] = f"constant_{len(self.initializers)}"
                self.initializers.append(numpy_helper.from_array(array, self._kept[same]))
            self._kept[key] = self._kept[same]
            self._alive.append(value.constant)  # or its id could come to mean another one
        return self._kept[key]

    def proto(self, output: Value, signature: Any) -> onnx.ModelProto:
        """The finished model with the names of ``signature``; axis 0 is ``batch``."""
        answer = signature.outputs[0]
        self.nodes.append(helper.make_node("Identity", [self._name(output)], [answer.name]))

        def info(tensor: Any) -> onnx.ValueInfoProto:
            kind = TensorProto.INT64 if tensor.dtype == "int64" else TensorProto.FLOAT
            return helper.make_tensor_value_info(tensor.name, kind, ["batch", *tensor.shape[1:]])

        graph = helper.make_graph(
            self.nodes,
            "model",
            [info(tensor) for tensor in signature.inputs],
            [info(answer)],
            initializer=self.initializers,
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="modelyard",
        )


@dataclass(frozen=True)
class Equation:
    """One operator as JAX traced it."""

    graph: Graph
    name: str
    options: dict[str, Any]
    before: tuple[Any, ...]
    """Shapes and dtypes that go in."""
    after: tuple[Any, ...]
    """Those that come out."""

    def refuse(self, what: str) -> ExportError:
        return ExportError(
            f"the model cannot be written as ONNX: {self.name} {what}",
            "replace that operation in the model, or move it out of the model",
        )


Operator = Callable[[Equation, list[Value]], list[Value]]
