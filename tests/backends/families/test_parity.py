"""A family is one architecture: as many parameters in each framework, and with the same weights the same outputs."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.backends.families.problems import Lesson, built, digits, lessons, prose_or_code

from modelyard.tasks.parts import by_name
from modelyard.tasks.signature import signature_of

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
nnx = pytest.importorskip("flax.nnx")

Array = NDArray[Any]
TALL = {"channels": [4], "hidden": 8}
CASES = lessons() | {
    "rnn with two layers": Lesson("rnn", {"kind": "rnn", "width": 8, "layers": 2}, digits(8, 8)),
    "gru": Lesson("rnn", {"kind": "gru", "width": 8}, digits(8, 8)),
    "encoder of numbers": Lesson("transformer-encoder", {"width": 8, "heads": 2}, digits(4, 16)),
    "decoder of tokens": Lesson("transformer-decoder", {"width": 8, "heads": 2}, prose_or_code()),
    "cnn with windows": Lesson("cnn", TALL, digits(1, 32, 2)),
    "mlp of pictures": Lesson("mlp", {}, digits(1, 8, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_weights_give_the_same_outputs(name: str) -> None:
    lesson = CASES[name]
    torch.manual_seed(0)
    model = built("pytorch", lesson).eval()
    weights = list(of_torch(model))
    signature = signature_of(lesson.problem.natural, lesson.problem.task)
    named = by_name(signature, lesson.problem.inputs[:8])
    with torch.no_grad():
        wanted = model(given(named, torch.from_numpy)).numpy()

    in_keras = built("keras", lesson)
    put(of_keras(in_keras), weights)
    found = keras.ops.convert_to_numpy(in_keras(given(named, pixels_last), training=False))
    np.testing.assert_allclose(found, wanted, atol=2e-5)

    in_jax = built("jax", lesson)
    in_jax.eval()
    put(of_flax(in_jax), weights)
    np.testing.assert_allclose(np.asarray(in_jax(given(named, counted))), wanted, atol=2e-5)


def given(named: dict[str, Array], make: Any) -> Any:
    """What a model is called with: one array, or a dict of them."""
    made = {name: make(array) for name, array in named.items()}
    return made if len(made) > 1 else next(iter(made.values()))


def pixels_last(array: Array) -> Array:
    return np.transpose(array, (0, 2, 3, 1)) if array.ndim == 4 else array


def counted(array: Array) -> Array:
    return array.astype(np.int32) if array.dtype == np.int64 else array


class Place:
    """Where a weight goes: its shape, and how it is set."""

    def __init__(self, shape: tuple[int, ...], assign: Any) -> None:
        self.shape, self.assign = tuple(shape), assign


def put(places: list[Place], weights: list[Array]) -> None:
    """Each weight to the first free place of its shape; none is left over, on either side."""
    free = list(places)
    for weight in weights:
        place = next(place for place in free if place.shape == weight.shape)
        place.assign(weight)
        free.remove(place)
    assert not free


def of_torch(module: Any) -> Iterator[Array]:
    """What is trained, with kernels as Keras and Flax lay them out: inputs before outputs."""
    for key, parameter in module.named_parameters(recurse=False):
        if not parameter.requires_grad:
            continue
        array = parameter.detach().numpy()
        if isinstance(module, torch.nn.Conv2d) and array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        elif "weight" in key and array.ndim == 2 and not isinstance(module, torch.nn.Embedding):
            array = array.T
        yield array
    for child in module.children():
        yield from of_torch(child)


def of_keras(model: Any) -> list[Place]:
    """In PyTorch's order: there a module's own weights come first."""
    places = []
    for layer in sorted(model.layers, key=lambda layer: layer.name != "positions"):
        if isinstance(layer, keras.Model):
            places += of_keras(layer)
        elif isinstance(layer, keras.layers.GRU):
            places += of_gru(layer.cell, layer.units)
        else:
            places += [Place(v.shape, v.assign) for v in layer.trainable_variables]
    return places


def of_gru(cell: Any, width: int) -> Iterator[Place]:
    """Its gates have another order in Keras, and its two biases are one weight."""
    order = np.r_[width : 2 * width, 0:width, 2 * width : 3 * width]

    def set_row(row: int, weight: Array) -> None:
        both = keras.ops.convert_to_numpy(cell.bias).copy()
        both[row] = weight[order]
        cell.bias.assign(both)

    def set_kernel(kernel: Any, weight: Array) -> None:
        kernel.assign(weight[:, order])

    for kernel in (cell.kernel, cell.recurrent_kernel):
        yield Place(kernel.shape, partial(set_kernel, kernel))
    for row in (0, 1):
        yield Place((3 * width,), partial(set_row, row))


def of_flax(module: Any) -> list[Place]:
    """In the order in which they were made, a module's own before those of its parts."""
    held = module.values() if isinstance(module, nnx.Dict) else vars(module).values()
    values = list(module) if isinstance(module, nnx.List) else list(held)
    own = [v for v in values if isinstance(v, nnx.Param)]
    places = [Place(v[...].shape, lambda w, v=v: v.__setitem__(..., w)) for v in own]
    for value in values:
        if isinstance(value, nnx.Module | nnx.List | nnx.Dict):
            places += of_flax(value)
    return places
