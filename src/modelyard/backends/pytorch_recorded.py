"""Steps of plain stacks of layers, recorded once: afterwards only the kernels are called, with no autograd.

A small model's step is mostly PyTorch finding out, anew each time, which kernels it needs: the modules' calls,
the graph for the backward pass, its nodes. For a stack of PyTorch's own layers the answer is always the same. So
the first step is traced, forward and backward, into a flat list of kernels (``make_fx``, which
``torch.compile`` uses too), what has no effect on the numbers is struck out, and the list is called with
each batch. The kernels are those of autograd, in their order: the results are equal bit for bit.

Whatever could do something else at the next step stays as it was: a module of the user's own, a
hook, a layer that draws numbers or keeps statistics, a frozen weight.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from modelyard.backends.base import Execution

_LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten,
    nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.LayerNorm, nn.Identity,
)  # fmt: skip
"""What they compute depends on their input and weights alone."""
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "parametrizations",
)  # fmt: skip
_MOST = 8
"""Recordings that are kept: one for each size of a share."""
_aten = torch.ops.aten
_QUICK: dict[Any, Callable[..., Any]] = {
    # The same kernels by the functions of torch's own module, which take their arguments quicker.
    _aten.addmm.default: torch.addmm,
    _aten.mm.default: torch.mm,
    _aten.t.default: torch.t,
    _aten.relu.default: torch.relu,
    _aten.sum.default: torch.sum,
    _aten.sum.dim_IntList: torch.sum,
    _aten.neg.default: torch.neg,
    _aten.view.default: torch.Tensor.view,
    _aten.tanh.default: torch.tanh,
    _aten.sigmoid.default: torch.sigmoid,
    _aten.mul.Tensor: torch.mul,
    _aten.div.Tensor: torch.div,
}
Loss = Callable[[torch.Tensor, tuple[torch.Tensor, ...]], torch.Tensor]
"""Outputs and answers -> this share's part of the global mean loss."""


class Recorded:
    """Stands for a forward and backward pass; it leaves each parameter its gradient."""

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        self._model, self._parameters = model, tuple(parameters)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._names = [names[id(parameter)] for parameter in self._parameters]
        self._kept: dict[Any, Callable[..., Any]] = {}

    def __call__(
        self, inputs: torch.Tensor, answers: tuple[torch.Tensor, ...], size: int, loss: Loss
    ) -> torch.Tensor:
        """The loss; ``loss`` must do the same whenever ``size`` and the shapes are the same."""
        key = (inputs.shape, inputs.stride(), size, len(answers))
        with torch.no_grad():
            run = self._kept.get(key)
            if run is None:
                if len(self._kept) == _MOST:
                    self._kept.clear()
                run = self._kept[key] = self._record(inputs, answers, loss)
            total, *gradients = run(inputs, *answers)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        result: torch.Tensor = total
        return result

    def _record(
        self, inputs: torch.Tensor, answers: tuple[torch.Tensor, ...], loss: Loss
    ) -> Callable[..., Any]:
        count = len(self._parameters)

        def both_passes(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            weights, one, x, rest = (
                given[:count],
                given[count],
                given[count + 1],
                given[count + 2 :],
            )
            named = dict(zip(self._names, weights, strict=True))
            total = loss(torch.func.functional_call(self._model, named, (x,)), rest)
            return total, *torch.autograd.grad(total, weights, one)

        held = (*self._parameters, torch.ones(()))
        with torch.enable_grad():
            traced = make_fx(both_passes)(*held, inputs, *answers)
        return _leaner(traced.graph, held)


def recordable(model: nn.Module, parameters: Sequence[nn.Parameter], execution: Execution) -> bool:
    """Whether each step of ``model`` calls the same kernels, and they are worth a recording: on CPUs, in float32."""
    plain = (
        execution.precision == "float32"
        and execution.compile is not True
        and execution.linear not in ("onednn", "mixed")
        and execution.micro_batch is None
        and execution.parallel == "replicate"
    )
    own = list(model.parameters())
    return (
        plain
        and len(own) == len(parameters) > 0
        and not any(True for _ in model.buffers())
        and all(type(p) is nn.Parameter and p.device.type == "cpu" and p.dtype == torch.float32 for p in own)
        and not any(parameter._backward_hooks for parameter in own)
        and is_stack(model)
    )  # fmt: skip


def is_stack(model: nn.Module) -> bool:
    """Whether ``model`` has only layers of PyTorch's own that compute the same at each step."""
    return all(_always_alike(module) for module in model.modules())


def _always_alike(module: nn.Module) -> bool:
    known = type(module) in _LAYERS or type(module) is nn.Sequential
    known = known or (type(module) is nn.Dropout and module.p == 0.0)
    return known and not any(getattr(module, hooks, None) for hooks in _HOOKS)


def _leaner(graph: fx.Graph, held: Sequence[torch.Tensor]) -> Callable[..., Any]:
    """The traced graph as a function of what differs from step to step; ``held`` are its first inputs."""
    fixed: dict[fx.Node, torch.Tensor] = dict(zip(graph.nodes, held, strict=False))
    constant = {node for node, value in fixed.items() if not isinstance(value, nn.Parameter)}
    for node in graph.nodes:
        if node.op == "call_function":
            _strike_out(node, fixed, constant)
    used = [node for node in fixed if any(user not in fixed for user in node.users)]
    values = [fixed[node] for node in used]
    graph.eliminate_dead_code()
    lean, new = fx.Graph(), {}
    for node in used:
        new[node] = lean.placeholder(node.name)
    for node in graph.nodes:
        if node not in fixed:
            new[node] = lean.node_copy(node, lambda other: new[other])
            new[node].target = _QUICK.get(node.target, node.target)
    root = graph.owning_module or nn.Module()  # has the constants: factors of classes
    run = fx.GraphModule(root, lean).forward
    return lambda *given: run(*values, *given)


def _strike_out(node: fx.Node, fixed: dict[fx.Node, torch.Tensor], constant: set[fx.Node]) -> None:
    """Have ``node`` not computed where its result is there already or never changes.

    ``fixed`` are tensors that stay where they are: weights, seen one way or another, and what is ``constant``.
    """
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return
    if node.target is _aten.detach.default:
        node.replace_all_uses_with(source)
    elif node.target in _TWICE_IS_NOTHING and source.target is node.target:
        node.replace_all_uses_with(cast("fx.Node", source.args[0]))
    elif node.target is _aten.t.default and source in fixed:
        fixed[node] = fixed[source].detach().t()  # the weight itself, seen the other way
    elif node.target is _aten.view.default and source.target is _aten.sum.dim_IntList:
        _, axes, kept = (*source.args, False)[:3]
        if (
            kept
            and axes == [0]
            and len(cast("list[int]", node.args[1])) == 1
            and len(source.users) == 1
        ):
            source.args = source.args[:2]  # the sum without the axis that the view takes away again
            node.replace_all_uses_with(source)
    elif node.target in _FOLDED and constant.issuperset(node.all_input_nodes):
        constant.add(node)
        arguments = fx.node.map_arg(node.args, lambda other: fixed[other])
        fixed[node] = cast("Any", node.target)(*arguments, **node.kwargs)


_TWICE_IS_NOTHING = {_aten.t.default, _aten.neg.default}
_FOLDED = {_aten.div.Tensor, _aten.mul.Tensor, _aten.expand.default, _aten.neg.default}
"""Of numbers that are the same at each step, like the first gradient of all, one by the batch's size."""
