"""Attention with fewer copies, and by plain matrix products where sequences are short, on CPUs in float32.

``nn.MultiheadAttention`` turns batch and places round twice, copies the joint projection apart, and its backward pass
fills arrays of the size of all three parts with zeros to add them up. Flash attention, which PyTorch calls for every
length, pays off where the scores do not fit into the caches; below that, batched products are faster.

``Attention`` is a context around a training step, as ``OneDNN`` is (decisions 16 and 21): in it two functions of
``torch.nn.functional`` are others, so that it holds for whatever a user's model calls by these names, and nothing
of the model is changed. The maths are the same, the order of sums is not: results differ by rounding. Which
way is taken depends on shapes and options alone. What is not known here goes to PyTorch's own functions.
"""

from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

LONGEST, WIDEST = 64, 32
"""Places, and numbers of a head, up to which products were faster than flash attention."""
_plain_core = functional.scaled_dot_product_attention
_plain_block = functional.multi_head_attention_forward


class _Short(torch.autograd.Function):
    """softmax(q k' / sqrt(d)) v and its gradients; each (n, heads, places, d), float32."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        shape = query.shape
        many, (places, width) = shape[0] * shape[1], shape[2:]
        joint = torch.stack((query, key, value)).view(3, many, places, width)
        q, k, v = joint.unbind()
        scores = query.new_empty(many, places, places)
        torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=width**-0.5, out=scores)
        shares = torch.softmax(scores, -1, out=scores)
        ctx.save_for_backward(joint, shares)
        return torch.bmm(shares, v).view(shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        joint, shares = ctx.saved_tensors
        q, k, v = joint.unbind()
        given, scale = gradient.reshape(q.shape), q.shape[-1] ** -0.5
        of_shares = torch.bmm(given, v.transpose(1, 2))
        of_scores = torch._softmax_backward_data(
            of_shares, shares, -1, torch.float32, grad_input=of_shares
        )
        found = torch.empty_like(joint)
        of_q, of_k, of_v = found.unbind()
        torch.baddbmm(of_q, of_scores, k, beta=0, alpha=scale, out=of_q)
        torch.baddbmm(of_k, of_scores.transpose(1, 2), q, beta=0, alpha=scale, out=of_k)
        torch.bmm(shares.transpose(1, 2), given, out=of_v)
        return tuple(found.view(3, *gradient.shape).unbind())


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **more: Any,
) -> torch.Tensor:
    """In place of ``scaled_dot_product_attention``: short sequences that see all of each other by products."""
    result: torch.Tensor
    if attn_mask is None and not (dropout_p or is_causal or more) and _is_short(query, key, value):
        result = _Short.apply(query, key, value)  # type: ignore[no-untyped-call]
    else:
        result = _plain_core(query, key, value, attn_mask, dropout_p, is_causal, **more)
    return result


def _is_short(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    shape = query.shape
    return (
        len(shape) == 4
        and shape == key.shape == value.shape
        and 0 < shape[2] <= LONGEST
        and 0 < shape[3] <= WIDEST
        and shape[0] * shape[1] > 0
        and all(_is_plain(tensor) for tensor in (query, key, value))
    )


def _is_plain(tensor: Any) -> bool:
    """No subclass, no tensor within ``torch.func``, no other number format or device."""
    return (
        type(tensor) in (torch.Tensor, nn.Parameter)
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def block(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: torch.Tensor | None,
    in_proj_bias: torch.Tensor | None,
    bias_k: torch.Tensor | None,
    bias_v: torch.Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: torch.Tensor,
    out_proj_bias: torch.Tensor | None,
    training: bool = True,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """In place of ``multi_head_attention_forward``: (places, n, width) -> the same, and no shares.

    For self-attention with one joint projection, given as ``nn.MultiheadAttention`` with ``batch_first``
    gives it, without a mask or with the causal one.
    """
    causal = bool(more.get("is_causal", False))
    known = (
        query is key is value
        and query.dim() == 3
        and in_proj_weight is not None
        and bias_k is bias_v is key_padding_mask is None
        and not (add_zero_attn or need_weights or more.get("use_separate_proj_weight"))
        and (attn_mask is not None) == causal
        and query.shape[-1] == embed_dim_to_check == num_heads * (embed_dim_to_check // num_heads)
        and query.transpose(0, 1).is_contiguous()
        and _is_plain(query)
        and _is_plain(in_proj_weight)
        and _is_plain(out_proj_weight)
    )
    if not known:
        return _plain_block(
            query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v,
            add_zero_attn, dropout_p, out_proj_weight, out_proj_bias, training, key_padding_mask, need_weights,
            attn_mask, **more,
        )  # fmt: skip
    rows = query.transpose(0, 1)
    joint = functional.linear(rows, in_proj_weight, in_proj_bias)  # type: ignore[arg-type]
    parts = joint.view(*rows.shape[:2], 3, num_heads, -1).unbind(2)
    q, k, v = (part.transpose(1, 2) for part in parts)
    dropout = dropout_p if training else 0.0
    seen = functional.scaled_dot_product_attention(q, k, v, None, dropout, causal)
    gathered = seen.transpose(1, 2).reshape(rows.shape)
    return functional.linear(gathered, out_proj_weight, out_proj_bias).transpose(0, 1), None


class Attention:
    """The context; it can be entered again and again, though not within itself."""

    def __enter__(self) -> None:
        functional.scaled_dot_product_attention = attention  # type: ignore[assignment]
        functional.multi_head_attention_forward = block  # type: ignore[assignment]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        functional.scaled_dot_product_attention = _plain_core
        functional.multi_head_attention_forward = _plain_block
