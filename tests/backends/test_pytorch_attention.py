"""Attention of a training step: torch's numbers but for rounding, fewer copies, and only what is understood."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from modelyard.backends.base import Batch, Execution, OptimizerSettings, StepSettings
from modelyard.backends.pytorch import PyTorch
from modelyard.backends.pytorch_attention import LONGEST, Attention, _Short, attention, block
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import Signature, Tensor

TASK = TaskSpec(type="classification", target="y", loss="cross-entropy", classes=("a", "b", "c"))
SIGNATURE = Signature(
    inputs=(Tensor(name="input", dtype="float32", shape=(None, 12, 8)),),
    outputs=(Tensor(name="scores", dtype="float32", shape=(None, 3)),),
)
WIDTH = 16


def passes(layer: nn.Module, *given: Any, **named: Any) -> list[torch.Tensor]:
    """Output and all gradients, the first input's included, with numbers drawn anew from the same seed."""
    torch.manual_seed(1)
    x = given[0].clone().requires_grad_()
    given = tuple(x if tensor is given[0] else tensor for tensor in given)
    out = layer(*given, **named)
    out = out[0] if isinstance(out, tuple) else out
    return [out, *torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])]


def alike(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def heads(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return nn.MultiheadAttention(WIDTH, 4, **{"batch_first": True, **options})


def causal(places: int) -> torch.Tensor:
    return nn.Transformer.generate_square_subsequent_mask(places)


@pytest.mark.parametrize("places", [1, 5, LONGEST, LONGEST + 1])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"dropout": 0.3}], ids=str)
def test_a_layer_comes_out_the_same_but_for_rounding(places: int, options: dict[str, Any]) -> None:
    layer, x = heads(**options), torch.randn(3, places, WIDTH)
    expected = passes(layer, x, x, x, need_weights=False)
    with Attention():
        found, again = (passes(layer, x, x, x, need_weights=False) for _ in range(2))
    alike(found, expected)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_the_causal_mask_is_kept() -> None:
    layer, x = heads(), torch.randn(3, 7, WIDTH)
    named = {"need_weights": False, "attn_mask": causal(7), "is_causal": True}
    expected = passes(layer, x, x, x, **named)
    with Attention():
        alike(passes(layer, x, x, x, **named), expected)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_whole_encoder_comes_out_the_same(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        WIDTH, 2, 32, 0.0, "gelu", batch_first=True, norm_first=norm_first
    )  # its dropout draws in the order of memory, which is another one here
    encoder, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(4, 9, 16)
    expected = passes(encoder, x)
    with Attention():
        alike(passes(encoder, x), expected)


@pytest.mark.parametrize("shape", [(6, WIDTH), (6, 2, WIDTH)], ids=str)
def test_places_first_and_a_single_sample_come_out_the_same(shape: tuple[int, ...]) -> None:
    layer, x = heads(batch_first=False), torch.randn(shape)
    expected = passes(layer, x, x, x, need_weights=False)
    with Attention():
        alike(passes(layer, x, x, x, need_weights=False), expected)


UNKNOWN: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]] = {
    "shares wanted": lambda: (heads(), (x := torch.randn(2, 6, WIDTH), x, x), {"need_weights": 1}),
    "of another": lambda: (
        heads(),
        (torch.randn(2, 6, WIDTH), y := torch.randn(2, 5, WIDTH), y),
        {},
    ),
    "a mask": lambda: (
        heads(),
        (x := torch.randn(2, 6, WIDTH), x, x),
        {"attn_mask": torch.randn(6, 6)},
    ),
    "padding": lambda: (
        heads(),
        (x := torch.randn(2, 6, WIDTH), x, x),
        {"key_padding_mask": torch.arange(6)[None, :].repeat(2, 1) > 3},
    ),
    "a zero more": lambda: (
        heads(add_zero_attn=True),
        (x := torch.randn(2, 6, WIDTH), x, x),
        {},
    ),
    "offsets more": lambda: (heads(add_bias_kv=True), (x := torch.randn(2, 6, WIDTH), x, x), {}),
    "double": lambda: (
        heads().double(),
        (x := torch.randn(2, 6, WIDTH, dtype=torch.float64), x, x),
        {},
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_understood_is_left_to_torch_bit_for_bit(name: str) -> None:
    layer, given, named = UNKNOWN[name]()
    named = {"need_weights": False, **named}
    expected = passes(layer, *given, **named)
    with Attention():
        found = passes(layer, *given, **named)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_call_by_users_themselves_takes_the_short_way_where_it_fits() -> None:
    q, k, v = torch.randn(3, 2, 4, 10, 8).requires_grad_().unbind()
    plain = functional.scaled_dot_product_attention
    torch.testing.assert_close(attention(q, k, v), plain(q, k, v))
    assert type(attention(q, k, v).grad_fn).__name__ == f"{_Short.__name__}Backward"
    mask = torch.ones(10, 10).tril().bool()
    for given, named in (
        ((q, k, v, mask), {}),
        ((q, k, v), {"is_causal": True}),
        ((q, k, v), {"scale": 0.5}),
        ((q, k[:, :, :5], v[:, :, :5]), {}),
        ((q[:, 0], k[:, 0], v[:, 0]), {}),
        ((q[:0], k[:0], v[:0]), {}),
    ):
        assert torch.equal(attention(*given, **named), plain(*given, **named))
    of_each = torch.func.vmap(attention)(q[:, None], k[:, None], v[:, None])
    torch.testing.assert_close(of_each[:, 0], plain(q, k, v))


def test_the_functions_are_put_back_also_after_an_error() -> None:
    before = functional.scaled_dot_product_attention, functional.multi_head_attention_forward
    with pytest.raises(AssertionError), Attention():
        assert functional.multi_head_attention_forward is block
        x = torch.randn(2, 6, WIDTH + 1)
        heads()(x, x, x)
    assert before == (
        functional.scaled_dot_product_attention,
        functional.multi_head_attention_forward,
    )


class Small(nn.Module):
    """A model of the user's own around an encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(8, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, 0.1, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.layer(self.embed(x)).mean(dim=1))
        return result


def trained(precision: str = "float32", steps: int = 4) -> tuple[list[float], list[torch.Tensor]]:
    backend, draws = PyTorch(), np.random.default_rng(0)
    settings = OptimizerSettings(name="sgd", execution=Execution(precision=precision))  # type: ignore[arg-type]
    state = backend.begin(Small(), TASK, settings, SIGNATURE)
    losses = []
    for step in range(steps):
        inputs, targets = (
            draws.normal(size=(6, 12, 8)).astype(np.float32),
            draws.integers(0, 3, 6),
        )
        share = Batch(inputs=inputs, targets=targets, global_size=6)
        state, result = backend.step(state, share, StepSettings(learning_rate=0.1, seed=step))
        losses.append(float(result.loss))
    return losses, [parameter.detach() for parameter in state.parameters]


def test_a_training_takes_it_and_repeats_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    inner = _Short.apply
    monkeypatch.setattr(_Short, "apply", lambda *given: calls.append(1) or inner(*given))
    losses, weights = trained()
    assert not calls, "attention with dropout is torch's"
    again, same = trained()
    assert losses == again
    assert all(torch.equal(one, other) for one, other in zip(weights, same, strict=True))
    monkeypatch.setattr(Small, "train", lambda self, _=True: nn.Module.train(self, False))
    trained()
    assert len(calls) == 4, "one layer, four steps"
    trained("bfloat16")
    assert len(calls) == 4
