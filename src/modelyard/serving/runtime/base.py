"""What a runtime must do: open a bundle's model file and answer tensors with tensors, from any thread."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from modelyard.spec.signature import Signature


class Runtime(ABC):
    """The contract; one file per runtime in this folder."""

    @abstractmethod
    def open(self, folder: Path, signature: Signature, *, threads: int) -> None:
        """Load the model from an unpacked bundle. Raises ServingError."""

    @abstractmethod
    def run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Named arrays with a common batch axis 0 in, named arrays out. Thread-safe."""
