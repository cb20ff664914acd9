"""How the parameters of a JAX model are trained, with its layers in the order in which it uses them."""

from typing import Any

import jax

from modelyard.backends.base import OptimizerSettings
from modelyard.backends.jax_model import Functional, outline_of
from modelyard.backends.parameter_rules import Treatment, treatments
from modelyard.spec.signature import Signature


def treat(
    model: Functional, settings: OptimizerSettings, signature: Signature
) -> dict[str, Treatment]:
    """The treatment of each parameter, by its name.

    Raises TrainingError for a pattern that matches nothing, ModelError where nothing is left to train.
    """
    axes = {
        name: len(array.shape) for name, array in zip(model.names, model.parameters, strict=True)
    }
    if settings.layer_decay != 1.0:
        axes = {model.names[place]: axes[model.names[place]] for place in _used(model, signature)}
    return treatments(axes, settings)


def _used(model: Functional, signature: Signature) -> list[int]:
    """Places of the parameters in the order of their first use; those that are not used come first.

    JAX sorts a tree's leaves by their names, which says nothing of where the layers stand.
    """
    inputs = outline_of(signature, 2)
    parameters, kept = (
        [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
        for arrays in (model.parameters, model.kept)
    )
    traced = jax.make_jaxpr(lambda p, k, x: model.forward(p, k, x, None)[0])(
        parameters, kept, inputs
    )
    order: list[int] = []
    places: dict[Any, int] = {
        variable: place for place, variable in enumerate(traced.jaxpr.invars[: len(parameters)])
    }
    _walk(traced.jaxpr, places, order)
    return [*(place for place in range(len(parameters)) if place not in order), *order]


def _walk(program: Any, places: dict[Any, int], order: list[int]) -> None:
    """Into programs within the program too, as ``jit`` and ``remat`` leave them."""
    for equation in program.eqns:
        given = [None if hasattr(v, "val") else places.get(v) for v in equation.invars]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns") and len(inner.invars) == len(given):
                within = zip(inner.invars, given, strict=True)
                known = {variable: place for variable, place in within if place is not None}
                _walk(inner, known, order)
        for place in given:
            if place is not None and place not in order:
                order.append(place)
