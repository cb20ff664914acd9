"""Dense layers by oneDNN: the same numbers but for rounding, only within a step, and always the same ones again."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from modelyard.backends import pytorch_linear
from modelyard.backends.base import Batch, Execution, OptimizerSettings, StepSettings
from modelyard.backends.pytorch import PyTorch
from modelyard.backends.pytorch_linear import (
    OneDNN,
    Shapes,
    _Dense,
    available,
    faster,
    linear,
    mixed,
    seconds_of,
)
from modelyard.backends.pytorch_tune import Subject, settle
from modelyard.spec.errors import TrainingError
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import Signature, Tensor

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not available(CPU), reason="this PyTorch has no oneDNN")
TASK = TaskSpec(type="classification", target="y", loss="cross-entropy", classes=("a", "b", "c"))
SIGNATURE = Signature(
    inputs=(Tensor(name="input", dtype="float32", shape=(None, 32, 64)),),
    outputs=(Tensor(name="scores", dtype="float32", shape=(None, 3)),),
)


class Attentive(nn.Module):
    """Attention and dense layers, large enough for oneDNN, and a small one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(64, 2, 256, dropout=0.1, batch_first=True)
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.layer(x).mean(dim=1))
        return result


def subject(model: nn.Module) -> Subject:
    def alone(numbers: Sequence[float]) -> list[float]:
        return list(numbers)

    return Subject(model, model, (32, 64), torch.float32, CPU, alone)


def trained(kind: str, steps: int = 3) -> tuple[list[float], dict[str, np.ndarray], Execution]:
    backend = PyTorch()
    settings = OptimizerSettings(name="adamw", execution=Execution(linear=kind, samples=16))  # type: ignore[arg-type]
    state = backend.begin(Attentive(), TASK, settings, SIGNATURE)
    draws = np.random.default_rng(0)
    losses = []
    for step in range(steps):
        batch = Batch(
            inputs=draws.normal(size=(16, 32, 64)).astype(np.float32),
            targets=draws.integers(0, 3, 16),
            global_size=16,
        )
        state, result = backend.step(state, batch, StepSettings(learning_rate=1e-3, seed=step))
        losses.append(float(result.loss))
    return losses, backend.snapshot(state).tensors, backend.execution(state)


@pytest.mark.parametrize("shape", [(2048, 64), (16, 128, 64), (4, 4, 128, 64)], ids=str)
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("own", [linear, mixed])
def test_results_and_gradients_are_those_of_torch(
    shape: tuple[int, ...], biased: bool, own: Callable[..., torch.Tensor]
) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(96, 64, requires_grad=True)
    bias = torch.randn(96, requires_grad=True) if biased else None
    given = [tensor for tensor in (x, weight, bias) if tensor is not None]
    found = []
    for way in (functional.linear, own, own):
        made = way(x, weight, bias)
        found.append([made, *torch.autograd.grad(made.sin().sum(), given)])
    assert type(found[1][0].grad_fn).__name__ == f"{_Dense.__name__}Backward"
    for expected, got, again in zip(*found, strict=True):
        assert got.shape == expected.shape and torch.equal(got, again)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-3)


def test_what_is_small_or_of_another_kind_is_left_to_torch() -> None:
    small, large = torch.randn(8, 64), torch.randn(2048, 64, requires_grad=True)
    weight = torch.randn(96, 64)
    for x, w in (
        (small, weight),
        (large.double(), weight.double()),
        (large.bfloat16(), weight.bfloat16()),
    ):
        assert torch.equal(linear(x, w), functional.linear(x, w))
    of_each = torch.func.vmap(linear, (0, None))(large.detach().reshape(2, 1024, 64), weight)
    assert of_each.shape == (2, 1024, 96)


def test_the_function_is_put_back_also_after_an_error() -> None:
    before = functional.linear
    with pytest.raises(RuntimeError), OneDNN():
        assert functional.linear is linear
        functional.linear(torch.ones(2, 3), torch.ones(2, 4))
    assert functional.linear is before


def test_attention_is_seen_and_measured() -> None:
    shapes = Shapes()
    with shapes:
        Attentive()(torch.randn(16, 32, 64))
    assert shapes.seen == Counter({(512, 64, 192): 1, (512, 64, 256): 1, (512, 256, 64): 1})
    assert min(seconds_of(shapes.seen)) > 0
    assert seconds_of(Counter()) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("kind", ["onednn", "mixed"])
def test_steps_come_out_the_same_but_for_rounding_and_repeat_bit_for_bit(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    products, product = [], pytorch_linear._product
    monkeypatch.setattr(
        pytorch_linear, "_product", lambda *given: products.append(1) or product(*given)
    )
    plain, _, _ = trained("blas")
    assert not products
    losses, tensors, execution = trained(kind)
    assert products  # on some processors both kernels give the same bits, which proves nothing
    again, same, _ = trained(kind)
    assert execution.linear == kind and losses == again
    np.testing.assert_allclose(losses, plain, rtol=1e-4)
    assert all(np.array_equal(tensors[name], same[name]) for name in tensors)


def test_auto_takes_the_faster_one_and_says_so() -> None:
    chosen, said = settle(Execution(linear="auto", samples=16), subject(Attentive()))
    begins = {
        "blas": (),
        "onednn": ("dense layers by oneDNN",),
        "mixed": ("dense layers by oneDNN, their weights' gradients by BLAS",),
    }
    assert tuple(text.split(":")[0] for text in said) == begins[chosen.linear]
    if said:
        other, ever = (
            float(text.split()[-1]) for text in said[0].replace(" by BLAS", "").split(" ms")[:2]
        )
        assert other < ever
    small, said = settle(Execution(linear="auto", samples=1), subject(Attentive()))
    assert (small.linear, said) == ("blas", ())


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((10e-3, 5e-3, 6e-3), "onednn"),
        ((10e-3, 9.4e-3, 9e-3), "mixed"),
        ((10e-3, 10.4e-3, 9.8e-3), "blas"),  # within what measures differ by
        ((1e-3, 0.9e-3, 0.9e-3), "blas"),  # not worth it: a tenth of a millisecond
        ((1e-3, 0.9e-3, 0.7e-3), "mixed"),
        ((0.0, 0.0, 0.0), "blas"),
    ],
)
def test_a_small_gain_counts_where_the_layers_are_large(
    seconds: tuple[float, float, float], expected: str
) -> None:
    assert faster(*seconds) == expected


@pytest.mark.parametrize("kind", ["onednn", "mixed"])
def test_what_it_cannot_do_is_refused_by_name(kind: str) -> None:
    wanted = Execution(linear=kind, precision="bfloat16", samples=4)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=f'"{kind}" is for steps in float32 on a CPU') as caught:
        settle(wanted, subject(Attentive()))
    assert 'train.linear = "auto"' in caught.value.mend
    open_wish = Execution(linear="auto", precision="bfloat16", samples=16)
    assert settle(open_wish, subject(Attentive()))[0].linear == "blas"
