"""Low-rank adapters in each framework: they alone learn, are small on disk, resume to the bit and merge."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.backends import open_backend
from modelyard.backends.base import Lora, OptimizerSettings, Snapshot
from modelyard.backends.contract import Case, _train
from modelyard.backends.snapshots import read_weights, write_snapshot
from modelyard.backends.source import build_model
from modelyard.bundle.verify import compare
from modelyard.spec.errors import ModelError

MODELS = str(Path(__file__).with_name("models"))
CASES = {
    "pytorch": Case(backend="pytorch", root=MODELS, build="mlp", args={"hidden": [256, 256]}),
    "keras": Case(backend="keras", root=MODELS, build="keras_models:wide"),
    "jax": Case(backend="jax", root=MODELS, build="jax_nets:build", args={"hidden": 256}),
    "functions": Case(
        backend="jax", root=MODELS, build="jax_nets:functions", args={"hidden": 1024}
    ),
}
LORA = Lora(rank=4, alpha=8)
ADAMW = OptimizerSettings(name="adamw", weight_decay=0.01, lora=LORA)


def begin(case: Case, settings: OptimizerSettings = ADAMW, seed: int = 0) -> tuple[Any, Any]:
    backend = open_backend(case.backend)
    backend.seed(seed)
    model = build_model(
        Path(case.root), case.build, case.args, case.signature, case.task, seed=seed
    )
    return backend, backend.begin(model, case.task, settings, case.signature)


def weights(snapshot: Snapshot) -> dict[str, Any]:
    return {key: array for key, array in snapshot.tensors.items() if key.startswith("model.")}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    name = request.param
    pytest.importorskip({"pytorch": "peft", "functions": "jax", "jax": "flax"}.get(name, name))
    return CASES[name]


def test_only_adapters_are_trained_and_kept(case: Case, tmp_path: Path) -> None:
    """At first the model answers as without them; then the loss falls, and a checkpoint is small."""
    plain, full = begin(case, OptimizerSettings(name="adamw"))
    backend, state = begin(case)
    inputs = np.random.default_rng(0).normal(size=(8, *case.input_shape)).astype(np.float32)
    first = backend.evaluate(state, inputs)
    assert np.allclose(first, plain.evaluate(full, inputs), atol=1e-6)
    state, losses = _train(backend, state, case, range(12))
    assert losses[-1] < losses[0] and not np.allclose(backend.evaluate(state, inputs), first)
    size = sum(array.nbytes for array in weights(backend.snapshot(state)).values())
    whole = sum(array.nbytes for array in weights(plain.snapshot(full)).values())
    assert size < 0.2 * whole
    write_snapshot(tmp_path, backend.snapshot(state))
    on_disk = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert on_disk < 3 * size + 20_000  # adapters, and two quantities of AdamW for each
    assert any("of" in note and "LoRA on" in note for note in backend.notes(state))


def test_a_resume_is_equal_to_the_bit_and_refuses_another_base(case: Case) -> None:
    backend, state = begin(case)
    state, _ = _train(backend, state, case, range(3))
    middle = backend.snapshot(state)
    assert middle.numbers["base"].startswith("sha256:")
    state, losses = _train(backend, state, case, range(3, 6))
    other, fresh = begin(case)
    fresh, again = _train(other, other.restore(fresh, middle), case, range(3, 6))
    assert again == losses
    ends = backend.snapshot(state).tensors, other.snapshot(fresh).tensors
    assert all(np.array_equal(array, ends[1][name]) for name, array in ends[0].items())
    elsewhere, another = begin(case, seed=1)
    with pytest.raises(ModelError, match="trained on other weights"):
        elsewhere.restore(another, middle)


def test_an_export_has_adapters_and_weights_in_one(case: Case, tmp_path: Path) -> None:
    """As in an export of a run: the model is built anew, and only the weights of a checkpoint are read."""
    backend, state = begin(case)
    state, _ = _train(backend, state, case, range(6))
    files = write_snapshot(tmp_path, backend.snapshot(state))
    other, fresh = begin(case, OptimizerSettings(name="sgd", lora=LORA))
    fresh = other.restore(fresh, read_weights(tmp_path, files))
    inputs = np.random.default_rng(0).normal(size=(8, *case.input_shape)).astype(np.float32)
    outputs = backend.evaluate(state, inputs)
    if case.backend == "keras":
        keras = pytest.importorskip("keras")
        if keras.backend.backend() == "jax":
            pytest.skip("Keras on JAX writes no ONNX")
    path = tmp_path / "model.onnx"
    other.export(fresh, path, case.signature)
    assert compare(path, case.signature, inputs, outputs) < 1e-5
    import onnx

    graph = onnx.load(path).graph
    plain, full = begin(case, OptimizerSettings(name="sgd"))
    plain.export(full, tmp_path / "plain.onnx", case.signature)
    same = onnx.load(tmp_path / "plain.onnx").graph
    assert [node.op_type for node in graph.node] == [node.op_type for node in same.node]
    assert np.array_equal(other.evaluate(fresh, inputs), outputs)  # it can be trained on afterwards


def test_some_layers_are_adapted_and_some_weights_trained_whole(case: Case) -> None:
    first, other, last = {
        "mlp": ("1", "4", "7"),
        "keras_models:wide": ("dense", "dense_1", "dense_2"),
        "jax_nets:build": ("first", "", "last"),
        "jax_nets:functions": ("first", "", "last"),
    }[case.build]
    lora = Lora(rank=2, alpha=2, match=(first,), also=(f"{last}.*",))
    backend, state = begin(case, OptimizerSettings(name="sgd", lora=lora))
    kept = [
        name.removeprefix("model.").replace("/", ".") for name in weights(backend.snapshot(state))
    ]
    assert {part for name in kept for part in name.split(".") if part in (first, last, other)} == {
        first,
        last,
    } and len(kept) == 4
    for fields, words in (
        ({"match": ("nowhere",)}, "no layer that can be adapted is called"),
        ({"also": ("nowhere",)}, "no weight of the model is called"),
        ({"match": (first,), "also": (f"{first}.*",)}, "adapts nothing"),
    ):
        with pytest.raises(ModelError, match=words):
            begin(case, OptimizerSettings(name="sgd", lora=Lora(rank=2, alpha=2, **fields)))


def test_the_adapted_weight_is_what_the_paper_says() -> None:
    """W + alpha / rank B A, of peft's own factors, in an export's weights."""
    torch, lora = (
        pytest.importorskip("torch"),
        pytest.importorskip("modelyard.backends.pytorch_lora"),
    )
    pytest.importorskip("peft")
    backend, state = begin(CASES["pytorch"])
    base = state.model[1].base_layer.weight.detach().double().clone()
    state, _ = _train(backend, state, CASES["pytorch"], range(4))
    layer = state.model[1]
    product = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
    found = lora.merged(state.model)[1].weight.double()
    assert torch.allclose(found, base + 2.0 * product, atol=1e-7) and product.abs().max() > 0
    assert torch.equal(layer.base_layer.weight.double(), base)


def test_pytorchs_own_encoder_is_adapted_where_it_calls_its_layers() -> None:
    """Its attention reads weights past its layers, and so would its fast path in evaluation."""
    torch = pytest.importorskip("torch")
    lora = pytest.importorskip("modelyard.backends.pytorch_lora")
    pytest.importorskip("peft")
    model = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    lora.add_adapters(model, LORA)
    assert hasattr(model.linear1, "lora_A") and not hasattr(model.self_attn.out_proj, "lora_A")
    inputs = torch.randn(2, 3, 16)
    model.eval()
    with torch.inference_mode():
        before = model(inputs)
    with torch.no_grad():
        model.linear1.lora_B["default"].weight.fill_(0.3)
    with torch.inference_mode():
        after = model(inputs)
        assert not torch.allclose(before, after)
        assert torch.allclose(lora.merged(model)(inputs), after, atol=1e-5)
