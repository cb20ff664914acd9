"""JAX models as ONNX: the same answers for any batch, and one clear line where that cannot be."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flax")
import jax
import jax.numpy as jnp
import onnx
import onnxruntime
from flax import nnx

from modelyard.backends.jax_export import export_onnx
from modelyard.backends.jax_model import functional
from modelyard.spec.errors import ExportError
from modelyard.spec.signature import Signature, Tensor

MODELS = str(Path(__file__).with_name("models"))
sys.path.insert(0, MODELS)
import jax_nets  # noqa: E402

sys.path.remove(MODELS)


def export(
    model: object, shape: tuple[int, ...], outputs: int, path: Path, dtype: str = "float32"
) -> Any:
    found = functional(model, jax.random.key(0))
    signature = Signature(
        inputs=(Tensor(name="input", dtype=dtype, shape=(None, *shape)),),
        outputs=(Tensor(name="scores", dtype="float32", shape=(None, outputs)),),
    )
    export_onnx(found, found.parameters, found.kept, path, signature)
    return lambda x: np.asarray(
        found.forward(found.parameters, found.kept, jnp.asarray(x), None)[0]
    )


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: jax_nets.build((1, 8, 8), 3), (1, 8, 8)),
        (lambda: jax_nets.rich((4,), 3), (4,)),
        (lambda: jax_nets.functions((5,), 3), (5,)),
        (lambda: jax_nets.Recurrent(4, 3, nnx.Rngs(0)), (6, 4)),
        (lambda: jax_nets.Pooled(3, nnx.Rngs(0)), (3, 21, 16)),
    ],
)
def test_the_file_answers_as_the_model_for_any_batch(
    model: Callable[[], object], shape: tuple[int, ...], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    answer = export(model(), shape, 3, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 3, 64):
        inputs = np.random.default_rng(count).normal(size=(count, *shape)).astype(np.float32)
        (found,) = session.run(["scores"], {"input": inputs})
        np.testing.assert_allclose(found, answer(inputs), atol=2e-5)


def test_tokens_go_in_as_int64(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    answer = export(jax_nets.Encoder(50, 3, nnx.Rngs(0)), (7,), 3, path, "int64")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tokens = np.random.default_rng(0).integers(0, 50, (5, 7))
    (found,) = session.run(["scores"], {"input": tokens})
    np.testing.assert_allclose(found, answer(tokens), atol=2e-5)


def test_the_file_is_the_same_each_time_and_says_nothing_of_this_machine(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        export(jax_nets.build((1, 8, 8), 3), (1, 8, 8), 3, tmp_path / name)
    content = (tmp_path / "a.onnx").read_bytes()
    assert content == (tmp_path / "b.onnx").read_bytes() and b"site-packages" not in content
    nodes = [node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node]
    assert nodes.count("Conv") == 1 and nodes.count("MaxPool") == 1


def pair(apply: Callable[..., Any]) -> tuple[Any, Any]:
    return lambda key: {"w": jnp.ones((4, 3))}, apply


@pytest.mark.parametrize(
    ("apply", "reason"),
    [
        (lambda p, x: jnp.sort(x @ p["w"], axis=-1), "the operator sort has no ONNX form"),
        (lambda p, x: x @ p["w"] if x.shape[0] > 3 else 2 * x @ p["w"], "any batch size"),
        (lambda p, x: (x @ p["w"]) * len(x), "any batch size"),
        (lambda p, x: (x @ p["w"])[:2], "some samples of a batch"),
        (lambda p, x: x @ p["w"] if x.sum() > 0 else -x @ p["w"], "TracerBoolConversionError"),
    ],
)
def test_what_onnx_cannot_express_is_named_in_one_line(
    apply: Callable[..., Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as caught:
        export(pair(apply), (4,), 3, tmp_path / "model.onnx")
    assert reason in caught.value.what and "\n" not in caught.value.what and caught.value.mend
    assert list(tmp_path.iterdir()) == []
