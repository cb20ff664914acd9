"""Dense layers by oneDNN, on CPUs where it is faster than the BLAS library that PyTorch calls for float32.

PyTorch's wheels call MKL; on one AMD processor that we measured, oneDNN, which lies in the same wheels, is
about twice as fast, on another a tenth, and slower in the gradients of weights, for which it wants its operands in
a form of its own; there ``Mixed`` leaves these to BLAS (decision 16). All compute in float32 and differ by rounding.

``OneDNN`` is a context around a training step in which ``torch.nn.functional.linear`` is another function.
So it holds for ``nn.Linear``, ``nn.MultiheadAttention`` and whatever a user's model calls by that name, the backward
pass included (also one that computes a forward pass again), and nothing of the model is changed: its
state, its export and its evaluation are those of before. A kernel registered with ``torch.library`` would hold for the whole
process, and cost every product of two matrices a call of Python.
"""

import time
from collections import Counter
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

LEAST = 2**22
"""Multiplications of a layer's forward pass below which the call costs more than the kernel saves."""
GAIN = 1.2
"""How many times faster the dense layers must be to be worth leaving the plain way, however small they are."""
_SMALL_GAIN, _WORTH = 1.04, 5e-4
"""Or so many times, where that is at least so many seconds of a step."""
_LARGEST, _REPEATS = 6, 5
_plain = functional.linear
Shape = tuple[int, int, int]
"""Rows, numbers in, numbers out."""


def available(device: torch.device) -> bool:
    """Whether this PyTorch has what is needed."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    names = (
        (torch.ops.mkldnn, "_linear_pointwise"),
        (torch.ops.aten, "mkldnn_linear_backward_weights"),
    )
    return all(hasattr(place, name) for place, name in names)


class _Dense(torch.autograd.Function):
    """``x @ weight.T + bias`` and its gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, by_blas: bool
    ) -> torch.Tensor:
        """``by_blas``: the gradients of weight and bias."""
        ctx.save_for_backward(x, weight)
        ctx.biased, ctx.by_blas = bias is not None, by_blas
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _product(gradient, weight.t(), None)
        if any(ctx.needs_input_grad[1:]):
            rows = gradient.reshape(-1, gradient.shape[-1])
            given = x.reshape(-1, x.shape[-1])
            way = _of_weights_by_blas if ctx.by_blas else _of_weights
            of_weight, of_bias = way(rows, given, weight, ctx.biased)
        return of_x, of_weight, of_bias, None


def _of_weights(
    rows: torch.Tensor, given: torch.Tensor, weight: torch.Tensor, biased: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    found = torch.ops.aten.mkldnn_linear_backward_weights(
        rows.contiguous().to_mkldnn(), given.contiguous().to_mkldnn(), weight, biased
    )
    return found[0].to_dense(), found[1].to_dense() if biased else None


def _of_weights_by_blas(
    rows: torch.Tensor,
    given: torch.Tensor,
    weight: torch.Tensor,  # noqa: ARG001
    biased: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    return rows.t().mm(given), rows.sum(0) if biased else None


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """In place of ``torch.nn.functional.linear``: large float32 layers by oneDNN, all others as ever."""
    if _fits(x, weight, bias):
        result: torch.Tensor = _Dense.apply(x, weight, bias, False)  # type: ignore[no-untyped-call]
        return result
    return _plain(x, weight, bias)


def mixed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The same, but for the gradients of weights, which are BLAS's."""
    if _fits(x, weight, bias):
        result: torch.Tensor = _Dense.apply(x, weight, bias, True)  # type: ignore[no-untyped-call]
        return result
    return _plain(x, weight, bias)


def _fits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """No subclass (a slice of a sharded weight, a tensor within ``torch.func``) and no other number format."""
    return (
        type(x) is torch.Tensor
        and type(weight) in (torch.Tensor, nn.Parameter)
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.ndim >= 2
        and weight.ndim == 2
        and x.numel() * weight.shape[0] >= LEAST
        and (bias is None or bias.dtype == torch.float32)
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and not torch._C._functorch.is_functorch_wrapped_tensor(weight)
    )


class OneDNN:
    """The context; it can be entered again and again, though not within itself."""

    function = staticmethod(linear)

    def __enter__(self) -> None:
        functional.linear = self.function  # type: ignore[assignment]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        functional.linear = _plain


class Mixed(OneDNN):
    """The gradients of weights by BLAS, all else by oneDNN."""

    function = staticmethod(mixed)


KINDS: dict[str, type[OneDNN]] = {"onednn": OneDNN, "mixed": Mixed}
"""The contexts by the names of ``Execution.linear``; ``"blas"`` needs none."""


class Shapes(OneDNN):
    """Notes the layers that ``linear`` would compute; they are computed as ever."""

    def __init__(self) -> None:
        self.seen: Counter[Shape] = Counter()

    def function(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        if _fits(x, weight, bias):
            self.seen[x.numel() // x.shape[-1], x.shape[-1], weight.shape[0]] += 1
        return _plain(x, weight, bias)


def seconds_of(shapes: Counter[Shape]) -> tuple[float, ...]:
    """Of a step's dense layers, forward and backward: as ever, by oneDNN, mixed. The costliest ones are measured."""
    costs = {shape: count * shape[0] * shape[1] * shape[2] for shape, count in shapes.items()}
    total = [0.0] * len(_WAYS)
    for shape in sorted(costs, key=lambda shape: -costs[shape])[:_LARGEST]:
        for way, seconds in enumerate(_seconds_of_one(shape)):
            total[way] += shapes[shape] * seconds
    return tuple(total)


def faster(ever: float, onednn: float, mixed: float) -> str:
    """Which ``Execution.linear`` these seconds of a step speak for."""
    best, name = min((onednn, "onednn"), (mixed, "mixed"))
    clearly = best * GAIN < ever
    worth = best * _SMALL_GAIN < ever and ever - best > _WORTH
    return name if clearly or worth else "blas"


_WAYS = (_plain, linear, mixed)


def _seconds_of_one(shape: Shape) -> list[float]:
    """The shortest of each way: what else the machine does can only make it longer."""
    rows, given, made = shape
    x = torch.full((rows, given), 0.5, requires_grad=True)
    weight = torch.full((made, given), 0.5, requires_grad=True)
    bias = torch.full((made,), 0.5, requires_grad=True)
    gradient = torch.full((rows, made), 0.5)
    times: list[list[float]] = [[] for _ in _WAYS]
    for number in range(1 + _REPEATS):
        for way, found in zip(_WAYS, times, strict=True):
            began = time.perf_counter()
            way(x, weight, bias).backward(gradient)  # type: ignore[no-untyped-call]
            x.grad = weight.grad = bias.grad = None
            if number:
                found.append(time.perf_counter() - began)
    return [min(found) for found in times]
