"""Does this model fit the task? Tried on zeros before anything else is done with it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from modelyard.backends.pytorch_input import sample_inputs, words_of
from modelyard.spec.errors import ModelError
from modelyard.spec.signature import Signature
from modelyard.tasks.parts import Part


def check_model(
    model: nn.Module,
    forward: Callable[[torch.Tensor], Any],
    output_size: int,
    signature: Signature,
    parts: Sequence[Part],
    device: torch.device,
) -> bool:
    """Refuse a model that does not fit; True where some parameters get no gradient from the output.

    ``forward`` is the model, or what makes its inputs and outputs those of the signature; of samples of
    several ``parts`` it takes rows of bytes.
    """
    given = words_of(signature)
    try:
        model.eval()
        outputs = forward(sample_inputs(signature, parts, 2, device))
    except Exception as error:
        raise ModelError(
            f"the model cannot take {given}: {type(error).__name__}: {error}",
            "make its first layers fit that shape"
            if len(signature.inputs) == 1
            else "let its forward take one dict, and its first layers fit those shapes",
        ) from error
    if not isinstance(outputs, torch.Tensor):
        raise ModelError(
            f"the model returned a {type(outputs).__qualname__}, not one tensor of shape (2, {output_size})",
            "return only the tensor with the outputs from forward",
        )
    if tuple(outputs.shape) != (2, output_size) or outputs.dtype != torch.float32:
        raise ModelError(
            f"for {given} the model gave {_describe(outputs)}; "
            f"this task needs float32 of shape (2, {output_size})",
            f"the last layer must have {output_size} output{'s' if output_size != 1 else ''}"
            if outputs.dtype == torch.float32
            else "return float32, e.g. `.float()`",
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained or not outputs.requires_grad:
        raise ModelError(
            "the model has nothing to train: its output depends on no parameter with requires_grad",
            "unfreeze at least the last layer",
        )
    gradients = torch.autograd.grad(outputs.sum(), trained, allow_unused=True)
    return any(gradient is None for gradient in gradients)


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
