"""The replicas of one version: each slot keeps one serving process alive, probed, and known to the gateway."""

import asyncio
import collections
import contextlib
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from modelyard.deployment.log_files import RotatingLog
from modelyard.deployment.process_table import Identity, ProcessTable, ReplicaPlan
from modelyard.deployment.processes import identity
from modelyard.deployment.restarts import (
    ATTEMPTS_TO_START,
    LONGEST_SECONDS,
    losses_in_a_row,
    restart_delay,
)
from modelyard.deployment.upstream import Pool, ReplicaGone, Upstream
from modelyard.spec.errors import DeploymentError
from modelyard.spec.records import Replica

STOP_SECONDS = 5.0
_PROBE = [b"GET /v2/health/live HTTP/1.1\r\nhost: replica\r\n\r\n"]


class _Ready(msgspec.Struct):
    """The ready file of a serving process."""

    pid: int
    port: int
    host: str
    version: int | str
    digest: str


class Slot:
    """One place for a replica. ``start`` fills it and keeps it filled until ``stop``."""

    def __init__(
        self,
        replica: ReplicaPlan,
        table: ProcessTable,
        pool: Pool,
        folder: Path,
        ready_seconds: float,
        on_change: Callable[[], None],
    ) -> None:
        self._replica, self._table, self._pool = replica, table, pool
        self._folder, self._ready_seconds, self._on_change = folder, ready_seconds, on_change
        self._log = RotatingLog(folder / "logs" / f"replica-{replica.index}.log")
        self._said: collections.deque[str] = collections.deque(maxlen=15)
        self._task: asyncio.Task[None] | None = None
        self._losses = 0
        self.was_ready = False
        self.failed_starts = 0
        self.process: Identity | None = None
        self.record = Replica(
            index=replica.index,
            pid=None,
            address="",
            state="starting",
            version=table.service.version,
            digest=table.service.digest,
            since=_now(),
        )

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_filled())
        self._task.add_done_callback(self._not_for_nothing)

    def _not_for_nothing(self, task: "asyncio.Task[None]") -> None:
        """A defect in here must not leave a slot empty for ever: say it and begin again."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.write(f"supervisor: defect: {error!r}")
            asyncio.get_running_loop().call_later(LONGEST_SECONDS, self._begin_again, task)

    def _begin_again(self, task: "asyncio.Task[None]") -> None:
        if self._task is task and self.record.state != "stopped":
            self.start()

    async def stop(self) -> None:
        """End the process (gently, by force after 5 s) and stop replacing it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._change(state="stopped", pid=None)
        self._log.close()

    def mark_draining(self) -> None:
        self._change(state="draining")

    def _change(self, **fields: object) -> None:
        self.record = msgspec.structs.replace(self.record, since=_now(), **fields)
        self._on_change()

    async def _keep_filled(self) -> None:
        while True:
            ready_seconds, why = await self._one_life()
            self._losses = losses_in_a_row(self._losses, ready_seconds)
            self.failed_starts += not ready_seconds
            self._log.write(f"supervisor: {why}; starting it again")
            self._change(
                state="failed", pid=None, address="", error=why, restarts=self.record.restarts + 1
            )
            await asyncio.sleep(restart_delay(self._losses))

    async def _one_life(self) -> tuple[float, str]:
        """One process from its start to its end: how long it was ready, and why it ended."""
        ready_file = (
            self._folder / "run" / f"replica-{self._replica.index}-{time.monotonic_ns()}.json"
        )
        self._said.clear()
        try:
            process = await self._launch(ready_file)
        except OSError as error:
            return 0.0, f"it could not be started: {error}"
        reading = asyncio.create_task(self._read_output(process))
        ended = asyncio.create_task(process.wait())
        try:
            ready_seconds, why = await self._watch(ended, ready_file)
            if not ended.done():
                # It hangs: it would not hear SIGTERM, and its requests wait to be sent elsewhere.
                process.kill()
            return ready_seconds, why
        finally:
            await _end(process, ended)
            with contextlib.suppress(TimeoutError):
                # A grandchild may hold the output open for ever.
                await asyncio.wait_for(reading, 1.0)
            self.process = None
            ready_file.unlink(missing_ok=True)

    async def _launch(self, ready_file: Path) -> asyncio.subprocess.Process:
        ready_file.parent.mkdir(parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", *self._table.replica_command, *self._replica.arguments),
            *("--ready-file", str(ready_file), "--parent-pid", str(os.getpid())),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | self._replica.environment,
        )
        with contextlib.suppress(ProcessLookupError):
            self.process = identity(process.pid)
        self._change(state="starting", pid=process.pid, address="")
        return process

    async def _read_output(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        rest = b""
        while chunk := await process.stdout.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._say(line)
            rest = rest[-65536:]
        if rest:
            self._say(rest)

    def _say(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self._said.append(text)
        self._log.write(text)

    async def _watch(self, ended: "asyncio.Task[int]", ready_file: Path) -> tuple[float, str]:
        ready = await self._wait_ready_file(ended, ready_file)
        if isinstance(ready, str):
            return 0.0, ready
        upstream = Upstream(ready.host, ready.port, self._replica.index)
        started = time.monotonic()
        self.was_ready = True
        self._pool.add(upstream)
        self._change(state="ready", address=f"http://{ready.host}:{ready.port}", error="")
        try:
            why = await self._probe_until_lost(upstream, ended)
        finally:
            self._pool.remove(upstream)
            upstream.close()
        return max(time.monotonic() - started, 1e-9), why

    async def _wait_ready_file(self, ended: "asyncio.Task[int]", path: Path) -> "_Ready | str":
        deadline = time.monotonic() + self._ready_seconds
        while not ended.done():
            if path.exists():
                try:
                    return msgspec.json.decode(path.read_bytes(), type=_Ready)
                except msgspec.DecodeError as error:
                    return f"its ready file is wrong: {error}"
            if time.monotonic() > deadline:
                return self._explain(f"not ready after {self._ready_seconds:g} s")
            await asyncio.wait({ended}, timeout=0.02)
        await asyncio.sleep(0.05)  # let its last words be read
        return self._explain(_ending(ended.result()))

    def _explain(self, what: str) -> str:
        said = "\n    ".join(line for line in self._said if line)
        return f"{what}; it said:\n    {said}" if said else what

    async def _probe_until_lost(self, upstream: Upstream, ended: "asyncio.Task[int]") -> str:
        settings, missed = self._table.supervisor, 0
        while missed < settings.probe_failures:
            await asyncio.wait({ended}, timeout=settings.probe_seconds)
            if ended.done():
                return _ending(ended.result())
            missed = 0 if await _answers(upstream, settings.probe_timeout_seconds) else missed + 1
            upstream.suspect = missed > 0
        return f"it answered none of {missed} probes"


class ReplicaSet:
    """All replicas of one plan."""

    def __init__(
        self,
        table: ProcessTable,
        folder: Path,
        ready_seconds: float,
        on_change: Callable[[], None],
    ) -> None:
        self.table = table
        self.pool = Pool()
        self._on_change = on_change
        self._changed = asyncio.Event()
        self.slots = [
            Slot(replica, table, self.pool, folder, ready_seconds, self._tell)
            for replica in table.replicas
        ]

    def _tell(self) -> None:
        self._changed.set()
        self._on_change()

    def start(self) -> None:
        for slot in self.slots:
            slot.start()

    @property
    def all_ready(self) -> bool:
        return all(slot.record.state == "ready" for slot in self.slots)

    async def wait_ready(self, seconds: float) -> None:
        """Return when every replica is ready. Raises DeploymentError with a replica's own last words."""
        try:
            async with asyncio.timeout(seconds):
                while not self.all_ready:
                    self._changed.clear()
                    self._give_up_on_hopeless()
                    await self._changed.wait()
        except TimeoutError:
            late = [slot.record.index for slot in self.slots if slot.record.state != "ready"]
            raise self._failure(f"replicas {late} were not ready after {seconds:g} s") from None

    def _give_up_on_hopeless(self) -> None:
        for slot in self.slots:
            if not slot.was_ready and slot.failed_starts >= ATTEMPTS_TO_START:
                raise self._failure(f"replica {slot.record.index} {slot.record.error}")

    def _failure(self, why: str) -> DeploymentError:
        service = self.table.service
        return DeploymentError(
            f"{service.model}:{service.version} did not come up: {why}",
            f"`yard logs {service.name}` has the whole of what the replicas said",
        )

    async def drain(self, seconds: float) -> None:
        """Wait until no request is in flight; the gateway sends no new ones by now."""
        for slot in self.slots:
            slot.mark_draining()
        deadline = time.monotonic() + seconds
        upstreams = list(self.pool.ready)
        while any(up.in_flight for up in upstreams) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        await asyncio.gather(*(slot.stop() for slot in self.slots))


async def _answers(upstream: Upstream, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return (await upstream.exchange(_PROBE)).status == 200
    except (ReplicaGone, TimeoutError):
        return False


async def _end(process: asyncio.subprocess.Process, ended: "asyncio.Task[int]") -> None:
    """SIGTERM, then SIGKILL, also where this task is cancelled meanwhile."""
    if not ended.done():
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait({ended}, timeout=STOP_SECONDS)
    if not ended.done():
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.wait({ended})


def _ending(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
