"""The controller: submits the workers, watches them, and does what the recovery policy decides."""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec
from msgspec.structs import replace

from modelyard.backends.preload import preload
from modelyard.engines import BUILT_IN as ENGINES
from modelyard.engines.base import Engine
from modelyard.spec.disk import has_less
from modelyard.spec.errors import (
    DiskFull,
    StoreError,
    TrainingError,
    TrainingInterrupted,
    YardError,
    from_os_error,
    no_room,
)
from modelyard.spec.plugins import load
from modelyard.spec.records import (
    AnyEvent,
    Noticed,
    Restarted,
    Run,
    RunFinished,
    Spent,
    WentBack,
    WorkerJoined,
    WorkerLost,
    WorkerRecord,
)
from modelyard.spec.work import Job, JobStatus, Resources
from modelyard.store import Store
from modelyard.store.events import EventLog, EventReader, now, read_events
from modelyard.training import budget, checkpoints
from modelyard.training.crew import crew_of
from modelyard.training.execution import recorded
from modelyard.training.hangs import Hang, HangWatch
from modelyard.training.last_words import words_left
from modelyard.training.memory import fewer_at_once
from modelyard.training.order import (
    EVENTS,
    RESULT,
    RUN,
    Result,
    WorkOrder,
    attempt_folder,
    timestamp,
)
from modelyard.training.recovery import (
    DISK_FULL_EXIT,
    Decision,
    decide,
    parted,
    raised_again,
    settle_seconds,
)
from modelyard.training.start_weights import read_started

_PRELOAD = (
    "modelyard.backends.source",
    "modelyard.data.dataset",
    "modelyard.training.evaluation",
    "modelyard.training.loop",
    "modelyard.training.saving",
)
"""What every worker imports; not the worker's own module, which is run and not imported."""
_GENTLE_SECONDS = 30.0
"""How long workers may take to reach a step boundary and write a checkpoint."""
_SCARCE_BYTES = 1_000_000


class Attempts:
    """One command's work on one run: as many attempts as the policy allows."""

    def __init__(
        self,
        order: WorkOrder,
        run: Run,
        store: Store,
        *,
        engine: str,
        observers: Sequence[Callable[[AnyEvent], None]],
    ) -> None:
        self._order = order
        self._run = run
        self._store = store
        self._folder = Path(order.folder)
        self._engine: Engine = load("engines", engine, ENGINES)()
        self._observers = observers
        self._reader = EventReader(self._folder / EVENTS)
        for _ in self._reader.read():  # what earlier commands did is no news
            pass
        self._log = EventLog(self._folder / EVENTS)
        self._handle: str | None = None
        self._attempt = 0
        self._restarts = 0
        """Since the last new checkpoint: progress gives the whole budget back."""
        self._noticed = 0.0
        self._hang: Hang | None = None
        self._reached = _last_step(self._folder)
        self._crew = crew_of(order.section)
        self._growing = False

    def run_to_end(self, poll_seconds: float) -> Run:
        """Returns the complete run; raises the worker's YardError, or TrainingInterrupted."""
        try:
            while True:
                decision = self._one_attempt(poll_seconds)
                if decision.action != "restart":
                    return self._end(decision)
                self._restarts += decision.budgeted
                self._announce_restart(decision)
        except KeyboardInterrupt as error:
            # A second Ctrl-C, or one between two attempts: no time for a checkpoint.
            self._cancel(grace=0.0)
            self._raise_interrupted(error)
        finally:
            self._engine.close()
            self._log.close()

    def _one_attempt(self, poll_seconds: float) -> Decision:
        """Submit, watch until the workers have ended, and decide."""
        if _result(self._folder) is not None:  # only the record is missing
            return Decision(action="done")
        interrupted, self._handle, self._hang, self._growing = False, None, None, False
        try:
            self._handle = self._submit()
            status = self._watch(poll_seconds)
        except KeyboardInterrupt:
            if self._handle is None:
                raise
            interrupted, status = True, self._cancel(grace=_GENTLE_SECONDS)
        except BaseException:
            self._cancel(grace=0.0)  # an observer raised: leave no worker behind
            raise
        failures = words_left(self._folder, self._attempt)
        if not interrupted:
            grace = 0.0 if self._hang else min(1.0, settle_seconds(status))
            self._cancel(grace)
        self._pass_on()
        progressed = (step := _last_step(self._folder)) > self._reached
        if progressed:
            self._reached, self._restarts = step, 0
        most = self._order.section.max_restarts
        decision = decide(status, self._restarts, most, interrupted, failures, self._hang)
        decision, words = fewer_at_once(self._order, self._store, decision)
        if self._growing and not interrupted and parted(status):  # as they were asked to
            decision, words = Decision(action="restart", budgeted=False), self._crew.grow()
        elif decision.action == "restart":
            ranks = [worker.rank for worker in decision.lost]
            words = words or self._crew.lost(ranks, progressed=progressed)
        if words:
            self._emit(Noticed(time=now(), attempt=self._attempt, message=words))
        return decision

    def _submit(self) -> str:
        self._attempt = _next_attempt(self._folder)
        job = Job(
            name=self._run.id,
            arguments=("-m", "modelyard.training.worker", str(self._folder)),
            size=self._crew.size,
            folder=str(self._folder / "workers"),
            resources=Resources(threads=self._order.threads, device=self._order.section.device),
            attempt=self._attempt,
            preload=(*_PRELOAD, *preload(Path(self._order.root), self._order.build)),
        )
        return self._engine.submit(self._engine.plan(job))

    def _watch(self, poll_seconds: float) -> JobStatus:
        """Pass events on until all workers have ended, one hangs, or one has failed and the others had time to."""
        section, failed_since = self._order.section, None
        hangs = HangWatch(
            attempt_folder(self._folder, self._attempt),
            section.hang_seconds,
            slow_start=getattr(section, "compile", "off") not in ("off", False),
        )
        began, first_step = time.monotonic(), _last_step(self._folder)
        while True:
            status = self._engine.poll(self._handle or "")
            self._pass_on()
            if all(worker.state != "running" for worker in status.workers):
                return status
            if status.state == "failed":
                if failed_since is None:
                    failed_since, self._noticed = time.monotonic(), now()
                if time.monotonic() - failed_since >= settle_seconds(status):
                    return status
            elif hang := hangs.look(status):
                self._hang, self._noticed = hang, now()
                return status
            elif (
                self._crew.may_grow(time.monotonic() - began)
                and _last_step(self._folder) > first_step
            ):
                self._growing = True
                return self._cancel(grace=_GENTLE_SECONDS)
            self._engine.wait(self._handle or "", poll_seconds)

    def _cancel(self, grace: float) -> JobStatus:
        if self._handle is None:
            return JobStatus(workers=())  # the engine leaves nothing of a submit that failed
        self._engine.cancel(self._handle, grace)
        return self._engine.poll(self._handle)

    def _pass_on(self) -> None:
        for event in self._reader.read():
            for observer in self._observers:
                observer(event)

    def _emit(self, event: AnyEvent) -> None:
        self._log.append(event)
        self._pass_on()

    def _announce_restart(self, decision: Decision) -> None:
        for worker in decision.lost:
            self._emit(
                WorkerLost(
                    time=self._noticed or now(),
                    attempt=self._attempt,
                    rank=worker.rank,
                    pid=worker.pid,
                    reason=decision.reason,
                )
            )
        step = _last_step(self._folder)
        self._emit(Restarted(time=now(), attempt=self._attempt + 1, step=step))
        self._run = replace(self._past(), step=step, world_size=self._crew.size)
        self._store.write(self._folder / RUN, self._run)

    def _past(self) -> Run:
        """The record, with what the event log knows of all attempts of all commands."""
        events = read_events(self._folder / EVENTS)
        workers = tuple(
            WorkerRecord(
                rank=event.rank,
                pid=event.pid,
                host=event.host,
                device=event.device,
                attempt=event.attempt,
            )
            for event in events
            if isinstance(event, WorkerJoined)
        )
        spent = budget.larger(self._run.spent, budget.spent_in(events))
        return replace(
            self._run,
            workers=workers,
            spent=spent,
            cost=self._cost(spent),
            restarts=sum(isinstance(event, Restarted) for event in events),
            notices=tuple(dict.fromkeys(e.message for e in events if isinstance(e, Noticed))),
            skipped=tuple(
                sorted(
                    {e.skipped for e in events if isinstance(e, WentBack) and e.skipped is not None}
                )
            ),
        )

    def _cost(self, spent: Spent) -> float | None:
        return budget.cost_of(spent, self._order.section.price_per_worker_hour)

    def _end(self, decision: Decision) -> Run:
        if decision.action == "interrupted":
            self._raise_interrupted(None)
        result = _result(self._folder) if decision.action == "done" else None
        if result is None:
            self._raise_failure(decision)
        self._finished("complete", result.step, result.seconds, result.reason, result.metrics)
        past = self._past()
        spent = budget.larger(past.spent, result.spent)
        self._run = replace(
            past,
            state="complete",
            finished=timestamp(),
            backend=result.backend,
            execution=recorded(self._folder),
            start=read_started(self._folder),
            step=result.step,
            best=result.best,
            metrics=result.metrics,
            confusion=result.confusion,
            seconds=result.seconds,
            samples_per_second=result.samples_per_second,
            reason=result.reason,
            spent=spent,
            cost=self._cost(spent),
        )
        self._store.write(self._folder / RUN, self._run)
        return self._run

    def _raise_failure(self, decision: Decision) -> NoReturn:
        error = self._error(decision)
        if isinstance(
            error, DiskFull
        ):  # no worker is left, and a checkpoint half written takes much room
            checkpoints.sweep(self._folder)
        self._record_end("failed", error.what)
        raise error

    def _error(self, decision: Decision) -> YardError:
        """A worker's own words where it left some, else what its log says last."""
        error: YardError | None = None
        if decision.failure is not None and decision.failure.known:
            error = raised_again(decision.failure)
        elif any(worker.exit_code == DISK_FULL_EXIT for worker in decision.lost) or (
            has_less(self._folder, _SCARCE_BYTES)
        ):
            error = no_room(self._folder)
        if isinstance(error, DiskFull):
            error.mend = (
                "free some space there and run the command again; it goes on from step "
                f"{_last_step(self._folder)} of {self._order.steps}"
            )
        if error is not None:
            return error
        rank = decision.lost[0].rank if decision.lost else 0
        reason = decision.reason or "no worker left a result"
        if decision.failure is not None:
            rank, reason = decision.failure.rank, f"worker {decision.failure.rank} raised {reason}"
        said = self._last_line(rank)
        if said and said not in reason:
            reason += f"; its log ends with: {said}"
        log = self._folder / "workers" / "logs" / f"rank-{rank}.log"
        return TrainingError(
            f"training ended without a result: {reason}",
            f"read {log if log.exists() else self._folder}; the same command goes on from step {_last_step(self._folder)}",
        )

    def _last_line(self, rank: int) -> str:
        try:
            text = self._engine.logs(self._handle or "", rank)
        except (YardError, OSError):
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return "" if not lines or lines[-1].startswith("--- attempt") else lines[-1][:300]

    def _raise_interrupted(self, cause: BaseException | None) -> NoReturn:
        step = _last_step(self._folder)
        self._record_end("interrupted", "")
        raise TrainingInterrupted(
            f"training of {self._run.id} was interrupted",
            f"run the same command again: it goes on from step {step} of {self._order.steps}",
        ) from cause

    def _finished(
        self, state: str, step: int, seconds: float, reason: str, metrics: dict[str, float]
    ) -> None:
        self._emit(
            RunFinished(
                time=now(),
                attempt=self._attempt,
                state=state,
                step=step,
                seconds=seconds,
                metrics=metrics,
                reason=reason,
            )
        )

    def _record_end(self, state: str, error: str) -> None:
        """Write down how it ended; a disk too full for that must not hide why."""
        with contextlib.suppress(StoreError):
            self._finished(state, _last_step(self._folder), 0.0, error or state, {})
            run = replace(self._past(), step=_last_step(self._folder), finished=timestamp())
            run = replace(run, state="failed" if state == "failed" else "interrupted", error=error)
            self._store.write(self._folder / RUN, run)


def _result(folder: Path) -> Result | None:
    """What the workers published at their end, while the checkpoint it speaks of is there."""
    try:
        result = Result.from_json((folder / RESULT).read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    best = replace(result.best, folder=str(checkpoints.folder_of(folder, result.best.step)))
    return replace(result, best=best) if Path(best.folder).is_dir() else None


def _last_step(folder: Path) -> int:
    """By its manifest: the workers compare the hashes, and a large state takes seconds."""
    return checkpoints.newest_step(folder)


def _next_attempt(folder: Path) -> int:
    """A number that no attempt of any command on this run had; its folder is made."""
    number = sum(1 for _ in (folder / "workers").glob("attempt-*"))
    try:
        attempt_folder(folder, number).mkdir(parents=True)
    except OSError as error:
        raise from_os_error(error) from error
    return number
