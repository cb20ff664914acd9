"""What a target must do to keep a service up.

- ``plan`` is pure: the target's own request (a process table, a Compose file, Kubernetes objects).
- ``check`` is asked before the work whose end is a deployment: it raises DeploymentError where the
  address cannot be had. A target that cannot tell does nothing.
- ``apply`` makes it so and returns when the new version answers, or raises DeploymentError and
  leaves the version before untouched. Applying what is already so changes nothing.
- ``observe`` says how it is now; None where there is no such deployment.
- ``remove`` takes it down: it refuses new requests, finishes those in flight, and leaves nothing running.
"""

from abc import ABC, abstractmethod
from pathlib import Path

from modelyard.spec.records import Deployment, Service
from modelyard.spec.work import Native


class Target(ABC):
    """The contract; one file per target in this folder. ``folder`` is the deployment's own folder in the store."""

    name: str

    @abstractmethod
    def plan(self, service: Service) -> Native: ...

    @abstractmethod
    def check(self, folder: Path, host: str, port: int) -> None: ...

    @abstractmethod
    def apply(self, folder: Path, plan: Native, *, timeout: float = 60.0) -> Deployment: ...

    @abstractmethod
    def observe(self, folder: Path) -> Deployment | None: ...

    @abstractmethod
    def logs(self, folder: Path, *, lines: int = 100) -> str: ...

    @abstractmethod
    def remove(self, folder: Path, *, timeout: float = 30.0) -> None: ...
