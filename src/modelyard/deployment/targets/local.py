"""The target ``local``: supervised processes on this machine behind one address."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec

from modelyard.deployment import processes
from modelyard.deployment.log_files import merged_tail
from modelyard.deployment.ports import check_free
from modelyard.deployment.process_table import (
    DESIRED,
    LOGS,
    OBSERVED,
    Desired,
    Identity,
    Observed,
    ProcessTable,
    process_table,
)
from modelyard.deployment.targets.base import Target
from modelyard.spec.cores import available_cores
from modelyard.spec.disk import has_less
from modelyard.spec.errors import DeploymentError, StoreError, from_os_error, no_room
from modelyard.spec.records import Deployment, Service
from modelyard.spec.work import Native
from modelyard.store.files import lock, write_atomic

_APPLY_LOCK = "apply.lock"
_POLL_SECONDS = 0.05
_SCARCE_BYTES = 2**16


class Local(Target):
    """A supervisor process per deployment runs the replicas and the gateway, and outlives the command."""

    name = "local"

    def __init__(
        self,
        replica_command: Sequence[str] = ("-m", "modelyard.serving"),
        cores: int | None = None,
    ) -> None:
        self._replica_command = tuple(replica_command)
        self._cores = cores or available_cores()

    def plan(self, service: Service) -> Native:
        """The process table. Every replica gets its share of the cores as threads."""
        table = process_table(service, self._replica_command, self._cores)
        plan: Native = msgspec.json.decode(msgspec.json.encode(table))  # lists, as JSON has them
        return plan

    def apply(self, folder: Path, plan: Native, *, timeout: float = 60.0) -> Deployment:
        """Bring the plan up within ``timeout`` seconds, or raise and keep what was there.

        Raises DeploymentError (a port in use, replicas that do not start) or StoreError.
        """
        table = msgspec.convert(plan, type=ProcessTable)
        folder = folder.absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with lock(folder / _APPLY_LOCK):
                supervisor = processes.live_supervisor(folder)
                self._check_port(folder, table.gateway.host, table.gateway.port, supervisor)
                desired = Desired(request=uuid.uuid4().hex, ready_seconds=timeout, plan=table)
                write_atomic(folder / DESIRED, msgspec.json.encode(desired))
                if supervisor is None:
                    _start_supervisor(folder)
                return _wait_for(folder, desired)
        except OSError as error:
            raise from_os_error(error, folder) from error

    def check(self, folder: Path, host: str, port: int) -> None:
        folder = folder.absolute()
        self._check_port(folder, host, port, processes.live_supervisor(folder))

    def _check_port(self, folder: Path, host: str, port: int, supervisor: Identity | None) -> None:
        """Before anything is started, and only where it is not this deployment that has the port."""
        before = _read_observed(folder) if supervisor else None
        if before is not None and before.service.port == port:
            return
        check_free(host, port)

    def observe(self, folder: Path) -> Deployment | None:
        """How it is now. A supervisor that is gone counts as failed, whatever it last wrote."""
        observed = _read_observed(folder)
        return _as_deployment(folder, observed) if observed else None

    def logs(self, folder: Path, *, lines: int = 100) -> str:
        """The last lines of the supervisor and all replicas in order of time, each with whose it is."""
        return merged_tail(folder / LOGS, lines)

    def remove(self, folder: Path, *, timeout: float = 30.0) -> None:
        """Drain and stop everything; what does not stop in ``timeout`` seconds is killed. Logs stay."""
        if not folder.exists():
            return
        try:
            with lock(folder / _APPLY_LOCK):
                # First: a supervisor that a killed command has started may be there only after this one ended.
                (folder / DESIRED).unlink(missing_ok=True)
                supervisor = processes.live_supervisor(folder)
                if supervisor is not None:
                    _end_supervisor(supervisor, timeout)
                self._clean_up(folder)
        except OSError as error:
            raise from_os_error(error, folder) from error

    def _clean_up(self, folder: Path) -> None:
        observed = _read_observed(folder)
        if observed is None:
            return
        processes.kill(observed.processes)
        stopped = tuple(
            msgspec.structs.replace(replica, state="stopped", pid=None)
            for replica in observed.replicas
        )
        record = msgspec.structs.replace(
            observed, state="stopped", replicas=stopped, supervisor_pid=None, processes=(), error=""
        )
        write_atomic(folder / OBSERVED, record.to_json())


def _read_observed(folder: Path) -> Observed | None:
    path = folder / OBSERVED
    try:
        return Observed.from_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os_error(error) from error
    except msgspec.DecodeError as error:
        raise StoreError(f"{path} is damaged: {error}", "delete it, then `yard up`") from error


def _start_supervisor(folder: Path) -> None:
    """Returns when the supervisor has the lock; it has detached itself from us by then."""
    log = folder / LOGS / "supervisor.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # -P and the folder: a user's own queue.py or model.py must not be found first.
    command = (sys.executable, "-P", "-m", "modelyard.deployment.supervisor", str(folder))
    with log.open("ab") as output:
        code = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            check=False,
        ).returncode
    # Another one may have come between, from a command that was killed: it reads the same wish.
    if code and processes.live_supervisor(folder) is None:
        last = merged_tail(folder / LOGS, 10)
        raise DeploymentError(
            f"the supervisor could not be started:\n{last}", f"{log} has the whole of it"
        )


def _wait_for(folder: Path, desired: Desired) -> Deployment:
    """Until the supervisor says what became of this request."""
    # It keeps the same time for the replicas, then drains the version before.
    drain = desired.plan.supervisor.drain_seconds
    deadline = time.monotonic() + desired.ready_seconds + drain + 10.0
    while time.monotonic() < deadline:
        alive = processes.live_supervisor(folder)
        observed = _read_observed(folder)
        if observed is not None and observed.request == desired.request:
            if observed.outcome == "done":
                return _as_deployment(folder, observed)
            if observed.outcome == "failed" and (alive is None or observed.state != "failed"):
                raise _failure(observed, desired)
        if alive is None:
            if has_less(folder, _SCARCE_BYTES):  # then it could not write its own reason either
                raise no_room(folder)
            last = merged_tail(folder / LOGS, 10)
            raise DeploymentError(f"the supervisor ended:\n{last}", "run the command again")
        time.sleep(_POLL_SECONDS)
    raise DeploymentError(
        f"no answer from the supervisor after {desired.ready_seconds + drain + 10:g} s",
        "`yard logs` shows what it does; `yard down` ends it",
    )


def _failure(observed: Observed, desired: Desired) -> DeploymentError:
    name, kept = desired.plan.service.name, ""
    if observed.state in ("ready", "degraded"):
        kept = (
            f"\n{observed.service.model}:{observed.service.version} keeps serving at {observed.url}"
        )
    return DeploymentError(
        observed.outcome_error + kept, f"`yard logs` shows all that the replicas of {name} said"
    )


def _as_deployment(folder: Path, observed: Observed) -> Deployment:
    fields = {name: getattr(observed, name) for name in Deployment.__struct_fields__}
    if observed.state not in ("stopped", "failed") and processes.live_supervisor(folder) is None:
        gone = f"its supervisor (pid {observed.supervisor_pid}) is gone; `yard up` starts it again"
        replicas = tuple(
            msgspec.structs.replace(replica, state="stopped", pid=None)
            for replica in observed.replicas
        )
        fields |= {"state": "failed", "error": gone, "supervisor_pid": None, "replicas": replicas}
    return Deployment(**fields)


def _end_supervisor(supervisor: Identity, timeout: float) -> None:
    os.kill(supervisor.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while processes.is_alive(supervisor) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    if processes.is_alive(supervisor):
        # It leads a process group of its own, and its replicas are in it.
        os.killpg(supervisor.pid, signal.SIGKILL)
        processes.kill([supervisor])
