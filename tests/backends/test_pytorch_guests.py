"""Models written for Lightning and transformers come in as they are: trained, resumed, exported."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from modelyard.backends import recognise
from modelyard.backends.base import Batch, OptimizerSettings, StepSettings
from modelyard.backends.contract import Case, read_result, run_workers
from modelyard.backends.pytorch import PyTorch
from modelyard.spec.errors import ModelError
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import Signature, Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what their own imports say
    import lightning
    import transformers

TASK = TaskSpec(type="classification", target="y", loss="cross-entropy", classes=("a", "b", "c"))
ADAMW = OptimizerSettings(name="adamw")


def signature(*shape: int) -> Signature:
    return Signature(
        inputs=(Tensor(name="input", dtype="float32", shape=(None, *shape)),),
        outputs=(Tensor(name="scores", dtype="float32", shape=(None, 3)),),
    )


class Plain(lightning.LightningModule):
    """Only forward: the task's loss is used."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Smoothed(Plain):
    """With a loss and an optimizer of its own, as Lightning's documentation teaches."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y, label_smoothing=0.5)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        raise AssertionError("not asked")


class InDictionary(Smoothed):
    def training_step(self, batch: Any, batch_idx: int) -> Any:  # type: ignore[override]
        return {"loss": super().training_step(batch, batch_idx)}


class ByHand(Smoothed):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class WithoutLoss(Smoothed):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None


def batch(count: int = 6, *shape: int) -> Batch:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(count, *(shape or (1, 8, 8)))).astype(np.float32)
    return Batch(inputs=inputs, targets=np.arange(count) % 3, global_size=count)


def first_loss(model: nn.Module) -> tuple[float, tuple[str, ...]]:
    backend = PyTorch()
    state = backend.begin(model, TASK, ADAMW, signature(1, 8, 8))
    _, result = backend.step(state, batch(), StepSettings(learning_rate=0.1, seed=0))
    return float(result.loss), backend.notes(state)


def test_a_lightning_module_without_a_training_step_is_trained_on_the_tasks_loss() -> None:
    torch.manual_seed(0)
    model = Plain()
    assert recognise(model) == "pytorch"
    given = batch()
    outputs = model(torch.from_numpy(given.inputs))
    expected = nn.functional.cross_entropy(outputs, torch.from_numpy(given.targets))
    loss, notes = first_loss(model)
    assert loss == pytest.approx(float(expected.detach())) and not notes


@pytest.mark.parametrize("kind", [Smoothed, InDictionary])
def test_the_loss_of_a_training_step_is_used_and_its_optimizer_is_not(kind: type[Plain]) -> None:
    torch.manual_seed(0)
    model = kind()
    given = batch()
    outputs, targets = model(torch.from_numpy(given.inputs)), torch.from_numpy(given.targets)
    expected = nn.functional.cross_entropy(outputs, targets, label_smoothing=0.5)
    loss, notes = first_loss(model)
    assert loss == pytest.approx(float(expected.detach()))
    assert "configure_optimizers is not used" in notes[0] and "training_step" in notes[1]


def test_what_another_loop_cannot_honour_is_refused() -> None:
    with pytest.raises(ModelError, match="optimizes by hand"):
        first_loss(ByHand())
    with pytest.raises(ModelError, match="training_step returned NoneType"):
        first_loss(WithoutLoss())
    blends = Batch(
        **{name: getattr(batch(), name) for name in ("inputs", "targets", "global_size")},
        other_targets=np.zeros(6, np.int64),
        weight=np.full(6, 0.5, np.float32),
    )
    backend = PyTorch()
    state = backend.begin(Smoothed(), TASK, ADAMW, signature(1, 8, 8))
    with pytest.raises(ModelError, match="blends") as caught:
        backend.step(state, blends, StepSettings(learning_rate=0.1, seed=0))
    assert "mixup" in caught.value.mend


def test_two_workers_train_a_lightning_module_as_one_does(tmp_path: Path) -> None:
    """The mean that each training_step gives counts by its share of the batch."""
    from modelyard.backends.contract import _begin, _train

    case = Case(backend="pytorch", root=str(Path(__file__).parent / "models"), build="guest:build")
    run_workers(tmp_path, case, ADAMW, seeds=(0, 1), steps=4, uneven=True)
    backend, state = _begin(case, ADAMW, 0)
    _train(backend, state, case, range(4), uneven=True)
    ends = [read_result(tmp_path, rank, "end").tensors for rank in (0, 1)]
    for name, array in backend.snapshot(state).tensors.items():
        assert not name.startswith("model.model.")
        np.testing.assert_array_equal(ends[0][name], ends[1][name])
        np.testing.assert_allclose(ends[0][name], array, atol=2e-5, err_msg=name)


def vision() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=3,
    )
    return transformers.ViTForImageClassification(config)


def language() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


def tokens(count: int = 6) -> Batch:
    generator = np.random.default_rng(0)
    numbers = generator.integers(1, 20, (count, 10))
    numbers[0, 6:] = 0  # padding
    return Batch(inputs=numbers.astype(np.float32), targets=np.arange(count) % 3, global_size=count)


@pytest.mark.parametrize(
    ("build", "shape", "given"),
    [(vision, (1, 8, 8), batch()), (language, (10,), tokens())],
    ids=["pixel_values", "input_ids"],
)
def test_a_transformers_model_is_trained_resumed_and_exported(
    build: Any, shape: tuple[int, ...], given: Batch, tmp_path: Path
) -> None:
    import onnxruntime

    backend = PyTorch()
    backend.seed(0)
    state = backend.begin(build(), TASK, ADAMW, signature(*shape))
    losses = []
    for step in range(12):
        settings = StepSettings(learning_rate=0.01, seed=step)
        state, result = backend.step(state, given, settings)
        losses.append(float(result.loss))
    assert losses[-1] < losses[0]
    kept = backend.snapshot(state)
    assert any(name.startswith(("model.vit.", "model.bert.")) for name in kept.tensors)
    other = backend.restore(backend.begin(build(), TASK, ADAMW, signature(*shape)), kept)
    outputs = backend.evaluate(state, given.inputs)
    np.testing.assert_array_equal(backend.evaluate(other, given.inputs), outputs)
    backend.export(state, tmp_path / "model.onnx", signature(*shape))
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    for count in (1, 6):
        (answer,) = session.run(["scores"], {"input": given.inputs[:count]})
        np.testing.assert_allclose(answer, outputs[:count], atol=1e-4)


def test_padding_is_masked() -> None:
    torch.manual_seed(0)
    model = language()
    backend = PyTorch()
    state = backend.begin(model, TASK, ADAMW, signature(10))
    given = tokens()
    ids = torch.from_numpy(given.inputs).long()
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=(ids != 0).long()).logits.numpy()
    np.testing.assert_allclose(backend.evaluate(state, given.inputs), expected, atol=1e-6)


def test_a_model_without_a_head_is_refused() -> None:
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    with pytest.raises(ModelError, match="no logits"):
        PyTorch().begin(transformers.BertModel(config), TASK, ADAMW, signature(10))
