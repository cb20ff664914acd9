"""Modelyard: from a dataset and a model to a served and monitored system, in one package.

The public verbs are resolved on first use (PEP 562), so that ``import modelyard`` costs
nothing and loads no framework, not even NumPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelyard.flow import add as add
    from modelyard.flow import deploy as deploy
    from modelyard.flow import export as export
    from modelyard.flow import find_rate as find_rate
    from modelyard.flow import prepare as prepare
    from modelyard.flow import read as read
    from modelyard.flow import train as train
    from modelyard.flow import tune as tune
    from modelyard.flow import up as up
    from modelyard.flow import verify_resume as verify_resume
    from modelyard.inquiry import predict as predict
    from modelyard.preflight import check as check
    from modelyard.spec.errors import YardError as YardError

__version__ = "0.1.0"

_VERBS = {
    "YardError": "modelyard.spec.errors",
    "add": "modelyard.flow",
    "check": "modelyard.preflight",
    "deploy": "modelyard.flow",
    "export": "modelyard.flow",
    "find_rate": "modelyard.flow",
    "predict": "modelyard.inquiry",
    "prepare": "modelyard.flow",
    "read": "modelyard.flow",
    "train": "modelyard.flow",
    "tune": "modelyard.flow",
    "up": "modelyard.flow",
    "verify_resume": "modelyard.flow",
}

__all__ = [
    "YardError",
    "__version__",
    "add",
    "check",
    "deploy",
    "export",
    "find_rate",
    "predict",
    "prepare",
    "read",
    "train",
    "tune",
    "up",
    "verify_resume",
]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(import_module(_VERBS[name]), name)
    raise AttributeError(f"module 'modelyard' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
