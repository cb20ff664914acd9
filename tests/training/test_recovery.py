"""What is decided when workers have ended, without a process in sight."""

import pytest

from modelyard.spec.errors import (
    MissingExtraError,
    ModelError,
    StoreError,
    TrainingError,
    UsageError,
)
from modelyard.spec.work import JobStatus, WorkerStatus
from modelyard.training.recovery import (
    DISK_FULL_EXIT,
    INTERRUPTED_EXIT,
    Failure,
    decide,
    parted,
    raised_again,
)


def status(*codes: int | None) -> JobStatus:
    """A job whose workers have these exit codes; 99 stands for one that still runs."""
    states = {0: "succeeded", 99: "running"}
    return JobStatus(
        workers=tuple(
            WorkerStatus(rank=r, pid=100 + r, state=states.get(c, "failed"), exit_code=c)  # type: ignore[arg-type]
            for r, c in enumerate(codes)
        )
    )


def failure(rank: int, kind: str, *, time: float = 0.0, known: bool = True) -> Failure:
    return Failure(rank=rank, time=time, type=kind, what=f"{kind} of {rank}", known=known)


def test_all_succeeded_is_done_even_when_someone_asked_to_stop() -> None:
    assert decide(status(0, 0), 0, 3, interrupted=False).action == "done"
    assert decide(status(0, 0), 0, 3, interrupted=True).action == "done"


def test_a_killed_worker_is_replaced_until_the_limit() -> None:
    killed = status(-9, 1)
    collateral = [failure(1, "TrainingError")]
    decision = decide(killed, 0, 3, False, collateral)
    assert decision.action == "restart"
    assert "worker 0" in decision.reason and "SIGKILL" in decision.reason
    assert [worker.rank for worker in decision.lost] == [0]
    assert decide(killed, 3, 3, False, collateral).action == "give-up"
    assert decide(killed, 0, 0, False, collateral).action == "give-up"


@pytest.mark.parametrize("code", [-9, -15, -11, 137, 143, INTERRUPTED_EXIT, None])
def test_every_way_of_being_lost_is_worth_a_restart(code: int | None) -> None:
    assert decide(status(code, 99), 0, 1, False).action == "restart"


@pytest.mark.parametrize("code", [1, 2])
def test_an_end_without_a_word_of_python_itself_is_not(code: int) -> None:
    assert decide(status(code, 99), 0, 1, False).action == "give-up"


def test_the_users_mistake_is_final_whatever_else_happened() -> None:
    decision = decide(status(1, -6), 0, 3, False, [failure(0, "ModelError")])
    assert decision.action == "give-up"
    assert decision.failure == failure(0, "ModelError")


def test_the_first_failure_is_the_cause() -> None:
    failures = [
        failure(0, "TrainingError", time=2.0),
        failure(1, "IndexError", time=1.0, known=False),
    ]
    decision = decide(status(1, 1), 0, 3, False, failures)
    assert decision.failure is not None and decision.failure.rank == 1


@pytest.mark.parametrize("known", [True, False])
def test_a_lost_peer_never_hides_the_cause(known: bool) -> None:
    """Who fails closes its lines before it says why: the other is often the first to speak."""
    lost = failure(1, "PeerLost", time=1.0)
    cause = failure(0, "DiskFull" if known else "IndexError", time=2.0, known=known)
    assert decide(status(1, 1), 0, 3, False, [lost, cause]).failure == cause
    unnamed = failure(
        1, "RuntimeError", time=1.0, known=False
    )  # as gloo says it, where nobody caught it
    if known:
        assert decide(status(1, 1), 0, 3, False, [unnamed, cause]).failure == cause


def test_a_worker_that_found_no_room_even_for_its_reason_is_the_cause() -> None:
    collateral = [failure(1, "PeerLost")]
    decision = decide(status(DISK_FULL_EXIT, 1), 0, 3, False, collateral)
    assert decision.action == "give-up" and decision.failure is None
    assert [worker.rank for worker in decision.lost] == [0] and "disk full" in decision.reason
    # Not even where another was killed: the room would be missing again.
    assert decide(status(DISK_FULL_EXIT, -9), 0, 3, False).action == "give-up"
    told = failure(1, "DiskFull")
    assert decide(status(DISK_FULL_EXIT, 1), 0, 3, False, [told]).failure == told


def test_only_all_that_were_asked_to_stop_have_parted() -> None:
    assert parted(status(INTERRUPTED_EXIT, INTERRUPTED_EXIT)) and parted(
        status(0, INTERRUPTED_EXIT)
    )
    assert not parted(status(0, 0)) and not parted(status(INTERRUPTED_EXIT, -9))


def test_an_interrupt_is_no_failure() -> None:
    assert decide(status(-9, INTERRUPTED_EXIT), 0, 3, interrupted=True).action == "interrupted"


@pytest.mark.parametrize("kind", [ModelError, StoreError, TrainingError])
def test_errors_are_raised_again_as_what_they_were(kind: type) -> None:
    error = raised_again(failure(0, kind.__name__))
    assert type(error) is kind and error.what == f"{kind.__name__} of 0"


def test_errors_with_another_shape_keep_their_exit_code() -> None:
    extra = Failure(
        rank=0, time=0, type="MissingExtraError", what="no torch", extra="pytorch", known=True
    )
    assert isinstance(raised_again(extra), MissingExtraError)
    assert "modelyard[pytorch]" in raised_again(extra).mend
    assert isinstance(raised_again(failure(0, "ProjectError")), UsageError)
