"""``python -m modelyard.deployment.supervisor FOLDER``: keeps one deployment as its ``desired.json`` says.

One process per deployment, which outlives the command that started it::

    desired.json --read--> start new replicas -> all ready -> switch the gateway -> drain the old
                                      |
                                      +- not ready: stop them, keep the old, say why
    every change --> observed.json          SIGTERM: refuse, drain, stop everything, exit 0

Started by the local target, it detaches, and its first process ends once the lock is held.
"""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import IO

import msgspec

from modelyard.deployment import processes
from modelyard.deployment.gateway import Gateway
from modelyard.deployment.gateway_metrics import GatewayMetrics
from modelyard.deployment.listener import Listener
from modelyard.deployment.log_files import RotatingLog
from modelyard.deployment.process_table import DESIRED, LOGS, OBSERVED, RUN, Desired, Observed
from modelyard.deployment.replicas import ReplicaSet
from modelyard.spec.errors import DeploymentError, YardError
from modelyard.spec.records import Replica
from modelyard.store.files import write_atomic

_LOOK_SECONDS = 0.1


class Supervisor:
    """Holds what runs, and makes it what is desired."""

    def __init__(self, folder: Path, log: RotatingLog) -> None:
        self._folder = folder
        self._log = log
        self._stop = asyncio.Event()
        self._current: ReplicaSet | None = None
        self._coming: ReplicaSet | None = None
        self._leaving: ReplicaSet | None = None
        self._gateway: Gateway | None = None
        self._listener: Listener | None = None
        self._desired: Desired | None = None
        self._outcome: tuple[str, str] = ("pending", "")
        self._changed = asyncio.Event()
        self._ended = ""
        self._last = b""

    async def run(self) -> int:
        """Until SIGTERM (0), or until there is nothing to keep because a first version failed (1)."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._end_leftovers()
        writing = asyncio.create_task(self._keep_observed())
        try:
            while not self._stop.is_set():
                desired = self._read_desired()
                if desired is None and self._desired is None:
                    break  # what this was started for is not wanted any more
                if desired is not None and desired != self._desired:
                    await self._pursue(desired)
                    if self._ended:
                        break
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), _LOOK_SECONDS)
        finally:
            await self._shut_down()
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writing
            self._write_observed()
        return 0 if self._ended == "stopped" else 1

    def _read_desired(self) -> Desired | None:
        try:
            return msgspec.json.decode((self._folder / DESIRED).read_bytes(), type=Desired)
        except FileNotFoundError:  # taken down
            return None
        except (OSError, msgspec.DecodeError) as error:
            self._log.write(f"{DESIRED} cannot be read: {error}")
            return None

    async def _pursue(self, desired: Desired) -> None:
        """Make one change; given up when SIGTERM or a request for something else comes meanwhile."""
        change = asyncio.create_task(self._change(desired))
        while not change.done():
            await asyncio.wait({change}, timeout=_LOOK_SECONDS)
            newer = self._read_desired() or desired
            if self._stop.is_set() or newer.plan != desired.plan:
                change.cancel()  # once: it cleans up after itself
                await asyncio.wait({change})
            elif not change.done() and newer.request != desired.request:
                # The command was repeated: what is under way answers the new request too.
                self._desired = desired = newer
                self._tell()
        if not change.cancelled():
            change.result()

    # --- one change ---------------------------------------------------------------------------

    async def _change(self, desired: Desired) -> None:
        service = desired.plan.service
        self._desired, self._outcome = desired, ("pending", "")
        self._tell()
        try:
            if self._current is not None and self._current.table == desired.plan:
                await self._current.wait_ready(desired.ready_seconds)
            else:
                self._log.write(f"bringing up {service.model}:{service.version} {service.digest}")
                await self._replace(desired)
        except YardError as error:
            self._log.write(f"failed: {error}")
            self._outcome = ("failed", error.what)
            if self._current is None:
                self._ended = "failed"
        else:
            self._log.write(f"{service.model}:{service.version} serves")
            self._outcome = ("done", "")
        self._tell()

    async def _replace(self, desired: Desired) -> None:
        plan = desired.plan
        if self._gateway is None:
            metrics = GatewayMetrics(self._count_ready, self._count_restarts)
            self._gateway = Gateway(plan.gateway, metrics)
        listener = await self._listen(self._gateway, desired)
        self._coming = ReplicaSet(plan, self._folder, desired.ready_seconds, self._tell)
        self._coming.start()
        try:
            await self._coming.wait_ready(desired.ready_seconds)
        except (DeploymentError, asyncio.CancelledError):
            await self._coming.stop()
            self._coming = None
            if listener is not self._listener:
                await listener.stop()
            raise
        before, self._listener = self._listener, listener
        self._gateway.switch(plan.gateway, self._coming.pool)
        self._leaving, self._current, self._coming = self._current, self._coming, None
        try:
            if before is not None and before is not listener:
                await before.stop()
            if self._leaving is not None:
                await self._leaving.drain(self._leaving.table.supervisor.drain_seconds)
        finally:
            if self._leaving is not None:
                await self._leaving.stop()
            self._leaving = None

    async def _listen(self, gateway: Gateway, desired: Desired) -> Listener:
        """The address first: a port in use is known before anything is started."""
        plan, old = desired.plan.gateway, self._listener
        if old is not None and (old.host, old.port) == (plan.host, plan.port):
            return old
        if old is not None and old.port == plan.port:
            raise DeploymentError(
                f"serve.host cannot change from {old.host} to {plan.host} while the service is up",
                "`yard down`, then `yard up`",
            )
        listener = Listener(gateway, plan.host, plan.port)
        await listener.start(desired.plan.supervisor.drain_seconds)
        if old is None:
            self._listener = listener
        return listener

    async def _shut_down(self) -> None:
        self._log.write("stopping")
        for replicas in self._sets():
            for slot in replicas.slots:
                slot.mark_draining()
        if self._listener is not None:
            await self._listener.stop()
        await asyncio.gather(*(replicas.stop() for replicas in self._sets()))
        self._ended = self._ended or "stopped"
        self._log.write("stopped")

    def _end_leftovers(self) -> None:
        """Replicas of a supervisor that was killed end by themselves; this is for those that hang."""
        with contextlib.suppress(OSError, msgspec.DecodeError):
            before = Observed.from_json((self._folder / OBSERVED).read_bytes())
            processes.kill(before.processes)
        for file in (self._folder / RUN).glob("replica-*"):
            file.unlink(missing_ok=True)

    # --- what is seen -------------------------------------------------------------------------

    def _sets(self) -> list[ReplicaSet]:
        return [one for one in (self._current, self._coming, self._leaving) if one is not None]

    def _count_ready(self) -> int:
        return len(self._gateway.pool.ready) if self._gateway else 0

    def _count_restarts(self) -> dict[int, int]:
        slots = self._current.slots if self._current else []
        return {slot.record.index: slot.record.restarts for slot in slots}

    def _tell(self) -> None:
        self._changed.set()

    async def _keep_observed(self) -> None:
        """Write every change, the latest state once, never on the loop: a disk may be slow."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            content = self._observed()
            if content is not None and content != self._last:
                await asyncio.to_thread(self._write, content)

    def _write_observed(self) -> None:
        if (content := self._observed()) is not None:
            self._write(content)

    def _write(self, content: bytes) -> None:
        try:
            write_atomic(self._folder / OBSERVED, content)
            self._last = content
        except OSError as error:
            self._log.write(f"{OBSERVED} could not be written: {error}")

    def _observed(self) -> bytes | None:
        desired = self._desired
        if desired is None:
            return None
        shown = self._current or self._coming
        table = shown.table if shown else desired.plan
        slots = [slot for replicas in self._sets() for slot in replicas.slots]
        replicas = tuple(slot.record for slot in slots)
        return Observed(
            name=table.service.name,
            target="local",
            state=self._state(tuple(slot.record for slot in shown.slots) if shown else ()),  # type: ignore[arg-type]
            url=self._listener.url if self._listener else "",
            service=table.service,
            replicas=replicas,
            supervisor_pid=None if self._ended else os.getpid(),
            folder=str(self._folder),
            error=self._outcome[1],
            request=desired.request,
            outcome=self._outcome[0],  # type: ignore[arg-type]
            outcome_error=self._outcome[1],
            processes=tuple(slot.process for slot in slots if slot.process is not None),
        ).to_json()

    def _state(self, replicas: tuple[Replica, ...]) -> str:
        if self._ended:
            return self._ended
        if self._current is None:
            return "starting"
        return "ready" if all(one.state == "ready" for one in replicas) else "degraded"


def main(folder: Path) -> int:
    """Detach, take the lock, supervise. The first process ends as soon as the second is at work."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        return 0 if os.read(reading, 1) else 1
    os.close(reading)
    os.setpgid(0, 0)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    log = RotatingLog(folder / LOGS / "supervisor.log", own_output=True)
    lock = processes.hold_supervisor_lock(folder)
    if lock is None:
        log.write("another supervisor is at work")
        return 1
    os.write(writing, b"1")
    os.close(writing)
    return _supervise(folder, log, lock)


def _supervise(folder: Path, log: RotatingLog, lock: IO[str]) -> int:
    loop_factory = None
    with contextlib.suppress(ModuleNotFoundError):
        import uvloop  # faster; asyncio's own loop does the same

        loop_factory = uvloop.new_event_loop

    async def run() -> int:
        return await Supervisor(folder, log).run()

    with lock, asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(run())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
