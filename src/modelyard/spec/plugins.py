"""Tables of implementations: names to lazily imported classes, built-ins and entry points merged."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from modelyard.spec.errors import MissingExtraError, UsageError, did_you_mean


@dataclass(frozen=True)
class Plugin:
    """One implementation of a seam, known without importing it."""

    target: str
    """``package.module:Class``."""
    summary: str
    extra: str = ""
    """The pip extra of Modelyard that it needs, if any."""


def table(seam: str, built_in: Mapping[str, Plugin]) -> dict[str, Plugin]:
    """All implementations of ``seam``; third parties add theirs by the entry-point group ``modelyard.<seam>``.

    A built-in name cannot be taken over by an installed package.
    """
    merged = {
        point.name: Plugin(
            point.value, f"from {point.dist.name if point.dist else 'an installed package'}"
        )
        for point in entry_points(group=f"modelyard.{seam}")
    }
    return merged | dict(built_in)


def load(seam: str, name: str, built_in: Mapping[str, Plugin]) -> Any:
    """Import the implementation called ``name``.

    Raises UsageError for an unknown name, MissingExtraError where its dependency is not installed.
    """
    plugins = table(seam, built_in)
    if name not in plugins:
        hint = did_you_mean(name, plugins)
        raise UsageError(
            f"no {seam} called {name!r}{hint}", f"available: {', '.join(sorted(plugins))}"
        )
    module, _, attribute = plugins[name].target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if plugins[name].extra and not (error.name or "").startswith("modelyard"):
            raise MissingExtraError(
                f"{seam} {name!r} needs the package {error.name!r}", plugins[name].extra
            ) from error
        raise
