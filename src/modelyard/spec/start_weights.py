"""Weights that a training starts from: where they are, and what of them came into the model."""

from typing import Literal

from modelyard.spec.record import Record


class StartWeights(Record, frozen=True, kw_only=True):
    """``model.weights`` once it has been found: files with digests, and how their names are read."""

    reference: str
    """As the project says it."""
    kind: Literal["checkpoint", "safetensors", "onnx"]
    folder: str
    """Where the files lie, absolute."""
    files: dict[str, str]
    """File name to ``sha256:…``."""
    digest: str
    """Of all files; an input of the run."""
    rename: dict[str, str] = {}
    """Beginning of a name in the file to what stands there in the model."""
    fresh: tuple[str, ...] = ()
    """Patterns of names in the model that keep their first weights."""


class Started(Record, frozen=True, kw_only=True):
    """What the model took of them; ``start.json`` in the run's folder, and a part of its record."""

    reference: str
    kind: str
    digest: str
    loaded: int
    """Tensors of the model that came from the files."""
    fresh: tuple[str, ...] = ()
    """Tensors of the model that kept their first values."""
    unused: tuple[str, ...] = ()
    """Tensors of the files that no tensor of the model took."""
    reshaped: tuple[str, ...] = ()
    """Taken in another shape, which differs by axes of length 1 only."""

    @property
    def words(self) -> str:
        """For people, in one line."""
        total = self.loaded + len(self.fresh)
        text = f"weights from {self.reference}: {self.loaded} of {total} tensors loaded"
        for kind, names in (
            ("fresh", self.fresh),
            ("not used", self.unused),
            ("without an axis of length 1, or with one more", self.reshaped),
        ):
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                text += f"; {kind}: {', '.join(names[:5])}{more}"
        return text
