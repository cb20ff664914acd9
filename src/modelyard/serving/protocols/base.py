"""What a protocol must do: translate requests to the plane's calls and answers back, nothing else."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelyard.serving.plane import Plane


class Protocol(ABC):
    """The contract; one file per protocol in this folder."""

    @abstractmethod
    def mount(self, plane: "Plane") -> list[Any]:
        """The routes (Starlette ``Route``) that this protocol answers on."""
