"""How a run computes its steps: what was asked for, and what its first attempt chose, which all later ones keep.

``execution.json`` in the run's folder holds the choice. Without it a resumed run would measure again,
might choose differently, and would no longer be the same bit for bit.
"""

import contextlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from modelyard.backends.base import Backend, Execution, State
from modelyard.spec.records import Record
from modelyard.spec.training import TrainSection
from modelyard.spec.work import World
from modelyard.store.files import write_atomic
from modelyard.training.order import WorkOrder

EXECUTION = "execution.json"


class Chosen(Record, frozen=True, kw_only=True):
    """``execution.json``."""

    device: str
    """Kind of device that it was chosen on; on another kind it is chosen anew."""
    execution: Execution


def execution_for(order: WorkOrder, backend: Backend, world: World) -> Execution:
    """What ``backend.begin`` is given: worker 0's choice of before, or what the project asks for.

    Every worker must call it.
    """
    device = backend.describe_device()
    before = read_execution(Path(order.folder))
    kept = before is not None and before.device == device
    # Workers on different machines could see different things: worker 0 decides for all.
    remembered = 0 if order.section.micro_batch != "auto" else order.memory.get(device, 0)
    mine = [float(kept), float(remembered)] if world.rank == 0 else [0.0, 0.0]
    kept_by_all, micro_batch = (int(number) for number in backend.reduce(np.array(mine)))
    wanted = asked_for(order.section, world.size, order.steps)
    if kept_by_all and before is not None:
        return replace(before.execution, samples=wanted.samples, steps=wanted.steps)
    if micro_batch and micro_batch < wanted.samples:
        return replace(wanted, micro_batch=micro_batch)
    return wanted


def asked_for(section: TrainSection, workers: int, steps: int) -> Execution:
    """As the project file says, with every ``"auto"`` still open."""
    return Execution(
        precision=section.precision,
        compile=section.compile,
        channels_last=section.channels_last,
        linear=section.linear,
        parallel=section.parallel,
        gradient_checkpointing=section.gradient_checkpointing,
        micro_batch=None if section.micro_batch == "auto" else section.micro_batch,
        samples=-(-section.batch_size // workers),
        steps=steps,
    )


def keep_execution(folder: Path, backend: Backend, state: State) -> None:
    """Write down what ``state`` came to use; for worker 0."""
    chosen = Chosen(device=backend.describe_device(), execution=backend.execution(state))
    write_execution(folder, chosen)


def write_execution(folder: Path, chosen: Chosen) -> None:
    content = chosen.to_json()
    path = folder / EXECUTION
    if not path.exists() or path.read_bytes() != content:
        write_atomic(path, content)


def read_execution(folder: Path) -> Chosen | None:
    """None where no attempt came so far, or where the file is damaged: then it is chosen anew."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return Chosen.from_json((folder / EXECUTION).read_bytes())
    return None


def recorded(folder: Path) -> dict[str, Any]:
    """For the run's record: the choice as plain values."""
    chosen = read_execution(folder)
    if chosen is None:
        return {}
    values: dict[str, Any] = msgspec.to_builtins(chosen.execution)
    return {key: value for key, value in values.items() if key not in ("samples", "steps")}
