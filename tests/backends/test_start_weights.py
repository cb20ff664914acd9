"""Weights from elsewhere come into a model of each framework by name, or the error says what to do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.backends import open_backend, recognise
from modelyard.backends.base import OptimizerSettings, Weight
from modelyard.backends.contract import Case
from modelyard.backends.source import build_model
from modelyard.backends.start_weights import fit, read_start, start_model
from modelyard.backends.tensors import write_tensors
from modelyard.spec.errors import ModelError, TrainingError
from modelyard.spec.start_weights import StartWeights
from modelyard.store.files import digest_file

MODELS = str(Path(__file__).with_name("models"))
CASES = {
    "pytorch": Case(backend="pytorch", root=MODELS, build="mlp"),
    "keras": Case(backend="keras", root=MODELS, build="keras_models:odd"),
    "jax": Case(backend="jax", root=MODELS, build="jax_nets:build"),
    "functions": Case(backend="jax", root=MODELS, build="jax_nets:functions"),
}
OWN = (
    Weight(names=("body.0.weight",), shape=(8, 4)),
    Weight(names=("body.0.bias",), shape=(8,)),
    Weight(names=("head.weight", "tied.weight"), shape=(3, 8)),
    Weight(names=("head.bias",), shape=(3,)),
)


def start(**fields: Any) -> StartWeights:
    plain = {"reference": "old.safetensors", "kind": "safetensors", "folder": "", "files": {}}
    return StartWeights(**{**plain, "digest": "sha256:0", **fields})


def given(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {name.replace("_", "."): np.ones(shape, np.float32) for name, shape in shapes.items()}


def written(folder: Path, tensors: dict[str, Any], **fields: Any) -> StartWeights:
    path = folder / "model.safetensors"
    path.unlink(missing_ok=True)
    digest = write_tensors(path, tensors)
    return start(folder=str(folder), files={path.name: digest}, **fields)


def built(case: Case, seed: int) -> tuple[Any, Any]:
    backend = open_backend(case.backend)
    backend.seed(seed)
    model = build_model(
        Path(case.root), case.build, case.args, case.signature, case.task, seed=seed
    )
    return backend, model


@pytest.mark.parametrize("name", CASES)
def test_a_model_begins_with_the_weights_of_another(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    pytest.importorskip({"pytorch": "torch", "functions": "jax", "jax": "flax"}.get(name, name))
    backend, model = built(case, 1)
    settings = OptimizerSettings(name="sgd")
    state = backend.begin(model, case.task, settings, case.signature)
    weights = {
        key.removeprefix("model."): array for key, array in backend.snapshot(state).tensors.items()
        if key.startswith("model.")
    }  # fmt: skip
    found = written(tmp_path, weights)

    backend, other = built(case, 2)
    before = backend.weights(other, case.signature)
    assert {one.names[0]: one.shape for one in before} == {k: a.shape for k, a in weights.items()}
    other, started = start_model(backend, other, case.signature, found)
    assert recognise(other) == case.backend
    assert started.loaded == len(weights) and not started.fresh and not started.unused
    state = backend.begin(other, case.task, settings, case.signature)
    for key, array in backend.snapshot(state).tensors.items():
        if key.startswith("model."):
            assert np.array_equal(array, weights[key.removeprefix("model.")]), key


def test_an_onnx_file_gives_its_initializers_by_name(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    case = CASES["pytorch"]
    backend, model = built(case, 1)
    state = backend.begin(model, case.task, OptimizerSettings(name="sgd"), case.signature)
    path = tmp_path / "model.onnx"
    backend.export(state, path, case.signature)
    found = start(kind="onnx", folder=str(tmp_path), files={path.name: digest_file(path)})
    backend, other = built(case, 2)
    other, started = start_model(backend, other, case.signature, found)
    assert (
        started.loaded == 6 and not started.fresh
    )  # what else is in it are constants of the graph
    wanted = backend.snapshot(state).tensors
    again = backend.begin(other, case.task, OptimizerSettings(name="sgd"), case.signature)
    assert all(np.array_equal(a, wanted[k]) for k, a in backend.snapshot(again).tensors.items())


def test_tied_weights_count_once_and_lazy_ones_are_made() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(8), torch.nn.Linear(8, 8))
    model.append(model[2])
    found = open_backend("pytorch").weights(model, CASES["pytorch"].signature)
    assert [one.names for one in found] == [
        ("1.weight",), ("1.bias",), ("2.weight", "3.weight"), ("2.bias", "3.bias")
    ]  # fmt: skip
    assert found[0].shape == (8, 64)


def test_names_are_read_as_the_project_says() -> None:
    tensors = given(bert_body_0_weight=(8, 4), bert_body_0_bias=(8,), bert_pooler=(2,))
    fitted = fit(OWN, tensors, start(rename={"bert.": ""}, fresh=("head.*",)))
    assert set(fitted.tensors) == {"body.0.weight", "body.0.bias"}
    assert fitted.fresh == ("head.weight", "head.bias") and fitted.unused == ("bert.pooler",)


def test_either_name_of_a_tied_weight_will_do_and_an_axis_of_length_1_does_not_matter() -> None:
    fitted = fit(OWN, given(tied_weight=(3, 8), head_bias=(1, 3)), start())
    assert fitted.tensors["head.weight"].shape == (3, 8)
    assert fitted.tensors["head.bias"].shape == (3,) and fitted.reshaped == ("head.bias",)
    assert fitted.fresh == ("body.0.weight", "body.0.bias")


def test_another_shape_is_refused_unless_it_is_named_as_fresh() -> None:
    tensors = given(body_0_weight=(8, 4), head_weight=(10, 8))
    with pytest.raises(ModelError) as caught:
        fit(OWN, tensors, start())
    assert "head.weight is 3×8 in the model and 10×8 in the file" in caught.value.what
    assert 'model.fresh = ["head.weight"]' in caught.value.mend
    assert "head.weight" in fit(OWN, tensors, start(fresh=("head.*",))).fresh
    with pytest.raises(ModelError, match="other way round"):
        fit(OWN, given(body_0_weight=(4, 8)), start())


@pytest.mark.parametrize(
    ("tensors", "fields", "words"),
    [
        (given(model_body_0_weight=(8, 4)), {}, r'model.rename = { "model." = "" }'),
        (given(zzz=(1,)), {}, r"the model has body.0.weight, body.0.bias"),
        (given(body_0_bias=(8,)), {"rename": {"bodi.": "x."}}, r"did you mean 'body.0.'"),
        (given(body_0_bias=(8,)), {"fresh": ("hea.weight",)}, r"did you mean 'head.weight'"),
        (given(a_x=(8,), b_x=(8,)), {"rename": {"a.": "", "b.": ""}}, r"makes both 'a.x' and 'b.x'"),
    ],
)  # fmt: skip
def test_what_fits_nothing_is_told_with_a_mend(
    tensors: dict[str, Any], fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError) as caught:
        fit(OWN, tensors, start(**fields))
    assert words in str(caught.value)


def test_bfloat16_comes_as_float32(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    save = pytest.importorskip("safetensors.torch").save_file
    value = torch.tensor([1.5, -3.25e10, 2.0**-20]).to(torch.bfloat16)
    save({"w": value}, tmp_path / "model.safetensors")
    digest = digest_file(tmp_path / "model.safetensors")
    found = read_start(start(folder=str(tmp_path), files={"model.safetensors": digest}))
    assert found["w"].dtype == np.float32 and found["w"].tolist() == value.float().tolist()


def test_a_file_that_changed_or_is_torn_is_told(tmp_path: Path) -> None:
    found = written(tmp_path, {"w": np.ones(3, np.float32)})
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be used: it was changed"):
        read_start(found)
    torn = start(folder=str(tmp_path), files={path.name: digest_file(path)})
    with pytest.raises(ModelError, match="buffer is smaller"):
        read_start(torn)


def test_a_backend_that_cannot_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("fourth")))
    from tiny_backend import Tiny

    with pytest.raises(TrainingError, match="cannot start from weights"):
        Tiny().weights(object(), CASES["pytorch"].signature)
