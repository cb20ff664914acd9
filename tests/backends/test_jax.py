"""The JAX backend keeps the contract, and what is special about JAX."""

from pathlib import Path

from modelyard.backends.contract import BackendContract, Case

MODELS = str(Path(__file__).with_name("models"))


class TestModules(BackendContract):
    case = Case(backend="jax", root=MODELS, build="jax_nets:build")


class TestFunctions(BackendContract):
    case = Case(backend="jax", root=MODELS, build="jax_nets:functions")
