"""Losses and metrics of the user's own: found in the project, tried before anything is trained, refused with the mend."""

import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.backends import open_backend
from modelyard.backends.source import code_digest, own_loss, own_metrics
from modelyard.spec.errors import ModelError
from modelyard.spec.records import TaskSpec
from modelyard.tasks import open_task
from modelyard.tasks.numpy_ops import NumpyOps

LOSSES = """
    import numpy as np

    def over_ops(ops, outputs, targets):
        return -ops.take(ops.log_softmax(outputs), targets)

    def constant(ops, outputs, targets):
        return 0.0 * ops.mean_last(outputs) + 1.0

    def logarithm(ops, outputs, targets):
        return ops.power(ops.mean_last(outputs), 0.5)

    def per_class(ops, outputs, targets):
        return ops.square(outputs)

    def raises(ops, outputs, targets):
        return outputs.no_such_thing

    def alone(outputs):
        return outputs
"""
TORCH = """
    import torch

    def good(outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

    def mean(outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets)

    def rounded(outputs, targets):
        return (outputs.argmax(dim=1) != targets).float()

    def over_numpy(outputs, targets):
        return torch.from_numpy((outputs.detach().numpy() ** 2).sum(1))
"""
JAX = """
    import jax, jax.numpy as jnp, numpy as np

    def good(outputs, targets):
        return -jnp.take_along_axis(jax.nn.log_softmax(outputs), targets[:, None], 1)[:, 0]

    def over_numpy(outputs, targets):
        return np.square(np.asarray(outputs)).sum(1)
"""
KERAS = """
    import keras

    def good(outputs, targets):
        return keras.losses.sparse_categorical_crossentropy(targets, outputs, from_logits=True)

    def rounded(outputs, targets):
        return keras.ops.cast(keras.ops.argmax(outputs, axis=1), "float32")
"""
METRICS = """
    def top_2(outputs, targets):
        return 0.5

    def alone(outputs):
        return 0.5
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in (
        ("losses", LOSSES), ("losses_torch", TORCH), ("losses_jax", JAX), ("losses_keras", KERAS),
        ("metrics", METRICS),
    ):  # fmt: skip
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    return tmp_path


def task(loss: str, **options: Any) -> TaskSpec:
    return TaskSpec(
        type="classification", target="x", loss=loss, classes=("a", "b", "c"), **options
    )


@pytest.mark.parametrize(
    ("backend", "module"), [("pytorch", "torch"), ("jax", "jax"), ("keras", "keras")]
)
def test_framework_code_is_a_loss_in_that_framework(root: Path, backend: str, module: str) -> None:
    """The same numbers as the built-in cross-entropy, in training and in what is reported."""
    pytest.importorskip(module)
    spec, framework = task(f"losses_{module}:good"), open_backend(backend)
    own = own_loss(root, spec)
    assert own is not None and not own.over_ops
    trained = framework.opened(spec, own)
    trained.own_loss = own.on(framework.differentiate)
    random = np.random.default_rng(0)
    outputs, targets = random.standard_normal((20, 3), dtype=np.float32), np.arange(20) % 3
    plain = open_task(task("cross-entropy")).losses_of_arrays(outputs, targets)
    np.testing.assert_allclose(trained.losses_of_arrays(outputs, targets), plain, rtol=1e-5)
    metrics = trained.metrics(trained.statistics(outputs, targets))
    assert metrics["loss"] == pytest.approx(metrics["log_loss"], rel=1e-5)
    nothing = trained.statistics(outputs[:0], targets[:0])
    assert np.isfinite(nothing).all()


@pytest.mark.parametrize(
    ("backend", "name", "words", "mend"),
    [
        ("pytorch", "losses:constant", "cannot be differentiated", "argmax"),
        ("pytorch", "losses:logarithm", "gave nan", "logits"),
        ("pytorch", "losses:per_class", r"gave shape \(8, 3\) for 8 samples", "one loss for each"),
        ("pytorch", "losses:raises", r"raised AttributeError: .*no_such_thing", "ops, outputs of shape"),
        ("pytorch", "losses_torch:mean", r"gave shape \(\)", "leave out the mean"),
        ("pytorch", "losses_torch:rounded", "cannot be differentiated", "argmax"),
        ("pytorch", "losses_torch:over_numpy", "cannot be differentiated", "NumPy"),
        ("jax", "losses:constant", "cannot be differentiated", "argmax"),
        ("jax", "losses_jax:over_numpy", "raised TracerArrayConversionError", "mend the code"),
        ("keras", "losses_keras:rounded", "cannot be differentiated", "argmax"),
    ],
)  # fmt: skip
def test_a_loss_that_cannot_be_trained(
    root: Path, backend: str, name: str, words: str, mend: str
) -> None:
    pytest.importorskip({"pytorch": "torch"}.get(backend, backend))
    own = own_loss(root, task(name))
    with pytest.raises(ModelError, match=words) as caught:
        open_backend(backend).opened(task(name), own)
    assert mend in caught.value.mend and f"{name.partition(':')[0]}.py:" in caught.value.what


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("losses:over_op", r"task.loss = .* has no function 'over_op'; did you mean 'over_ops'"),
        ("lossses:over_ops", r"there is no file .*; did you mean 'losses:over_ops'"),
        ("losses:alone", "needs 1 arguments"),
    ],
)
def test_a_loss_that_is_not_there(root: Path, loss: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        own_loss(root, task(loss))


def test_metrics_are_found_by_their_names(root: Path) -> None:
    found = own_metrics(root, task("cross-entropy", metrics=("metrics:top_2",)))
    assert list(found) == ["top_2"] and found["top_2"](None, None) == 0.5
    with pytest.raises(ModelError, match=r"'metrics:alone' .* needs 1 arguments"):
        own_metrics(root, task("cross-entropy", metrics=("metrics:alone",)))
    assert "metrics" not in sys.modules


def test_the_digest_of_the_code_covers_losses_and_metrics(root: Path) -> None:
    def digest() -> str:
        return code_digest(root, "mlp", "losses:over_ops", "metrics:top_2")

    before = digest()
    assert before == digest() != code_digest(root, "mlp")
    (root / "metrics.py").write_text("def top_2(outputs, targets):\n    return 0.25\n")
    assert digest() != before


def test_a_task_whose_loss_was_not_opened_trains_nothing() -> None:
    with pytest.raises(RuntimeError, match="losses:mine"):
        open_task(task("losses:mine")).losses(NumpyOps(), np.zeros((1, 3)), np.zeros(1, np.int64))
