"""What a local deployment is asked to be and is seen to be: the plan, the request, the observation."""

import os
from collections.abc import Sequence
from typing import Literal

import msgspec

from modelyard.spec.records import Deployment, Service

DESIRED, OBSERVED, LOGS, RUN = "desired.json", "observed.json", "logs", "run"


class ReplicaPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One serving process; the supervisor adds ``--ready-file`` and ``--parent-pid``."""

    index: int
    arguments: tuple[str, ...]
    environment: dict[str, str]


class GatewayPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The one address of the service, and what the gateway holds at most."""

    host: str
    port: int
    """0: any free port."""
    max_request_bytes: int
    timeout_seconds: float
    max_in_flight: int = 1024


class SupervisorPlan(msgspec.Struct, frozen=True, kw_only=True):
    """When a replica counts as hung, and how long its last requests may take."""

    probe_seconds: float = 1.0
    probe_timeout_seconds: float = 2.0
    probe_failures: int = 3
    """Probes in a row without an answer before a replica is killed and replaced."""
    drain_seconds: float = 30.0


class ProcessTable(msgspec.Struct, frozen=True, kw_only=True):
    """The local target's native request: everything that will run, and how."""

    kind: Literal["process-table"] = "process-table"
    service: Service
    supervisor: SupervisorPlan
    replica_command: tuple[str, ...]
    """What follows the Python interpreter and comes before a replica's own arguments."""
    replicas: tuple[ReplicaPlan, ...]
    gateway: GatewayPlan


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """``desired.json``: what the last ``apply`` asked for."""

    request: str
    """Tells one ``apply`` from the next, also where they ask for the same."""
    ready_seconds: float
    plan: ProcessTable


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    started: str
    """Start time as the kernel counts it; empty where the system does not tell."""


class Observed(Deployment, frozen=True, kw_only=True):
    """``observed.json``: a Deployment, what became of the last request, and whom to clean up after."""

    request: str = ""
    outcome: Literal["pending", "done", "failed"] = "pending"
    outcome_error: str = ""
    processes: tuple[Identity, ...] = ()
    """The replicas' processes, so that a later command can end what a crash left behind."""


def process_table(service: Service, replica_command: Sequence[str], cores: int) -> ProcessTable:
    """The processes that keep ``service`` up on a machine with ``cores`` cores."""
    threads = max(1, cores // service.replicas)
    arguments = (
        *("--bundle", os.path.abspath(service.bundle_folder)),  # noqa: PTH100 - pure: no link is followed
        *("--host", "127.0.0.1", "--port", "0", "--threads", str(threads)),
        *("--max-batch", str(service.max_batch)),
        *("--max-request-bytes", str(service.max_request_bytes)),
        *("--timeout-seconds", str(service.timeout_seconds)),
        *("--model", service.model, "--version", str(service.version)),
        *("--digest", service.digest, "--protocols", ",".join(service.protocols)),
    )
    environment = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    return ProcessTable(
        service=service,
        supervisor=SupervisorPlan(drain_seconds=service.timeout_seconds),
        replica_command=tuple(replica_command),
        replicas=tuple(
            ReplicaPlan(
                index=index,
                arguments=(*arguments, "--replica", str(index)),
                environment=environment,
            )
            for index in range(service.replicas)
        ),
        gateway=GatewayPlan(
            host=service.host,
            port=service.port,
            max_request_bytes=service.max_request_bytes,
            timeout_seconds=service.timeout_seconds,
        ),
    )
