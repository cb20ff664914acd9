"""Which functions of ``torch.nn.functional`` are others around a training step: dense layers, attention."""

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from torch import nn

from modelyard.backends.base import Execution
from modelyard.backends.pytorch_attention import Attention
from modelyard.backends.pytorch_linear import KINDS, OneDNN
from modelyard.backends.pytorch_recorded import is_stack


def kernels_of(model: nn.Module, execution: Execution) -> AbstractContextManager[None]:
    """The context of each step; it can be entered again and again."""
    dense = KINDS.get(execution.linear)
    plain = (
        execution.precision == "float32"
        and execution.compile is not True
        and execution.parallel == "replicate"
        and all(parameter.device.type == "cpu" for parameter in model.parameters())
    )
    if not plain or is_stack(model):  # layers that know no attention
        return dense() if dense else nullcontext()
    return _Both(dense()) if dense else Attention()


class _Both:
    """Dense layers by oneDNN, attention by ours: what the latter calls for dense layers is the former."""

    def __init__(self, dense: OneDNN) -> None:
        self._dense, self._attention = dense, Attention()

    def __enter__(self) -> None:
        self._dense.__enter__()
        self._attention.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._attention.__exit__(kind, error, trace)
        self._dense.__exit__(kind, error, trace)
