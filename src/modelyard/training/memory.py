"""Out of memory: fewer samples at once, the same batch, and the store remembers what fits where.

The policy: all workers start again from the last checkpoint and take half as many samples through the
model at once. Gradients of the pieces add up to those of the whole batch, so batch size and learning
rate keep their meaning; only the rounding (and a batch norm's statistics, which are those of a piece)
differ. Below one sample there is nothing to halve.
"""

from pathlib import Path

import msgspec
from msgspec.structs import replace

from modelyard.spec.records import Record
from modelyard.store import Store
from modelyard.store.files import digest_bytes, lock, write_atomic
from modelyard.training.execution import Chosen, asked_for, read_execution, write_execution
from modelyard.training.order import WorkOrder
from modelyard.training.recovery import Decision, Failure

MEMORY = "memory.json"


class Memory(Record, frozen=True, kw_only=True):
    """``memory.json`` in the store: what ran out of memory before, and what was taken instead."""

    fits: dict[str, dict[str, int]] = {}
    """Model and input (a digest) to kind of device to the samples that are taken at once."""


def model_key(order: WorkOrder, code: str) -> str:
    """Names what needs the memory: the model with its arguments, its input, and how it is computed."""
    section = order.section
    shapes = [tensor.shape for tensor in order.signature.inputs]
    shape = shapes if len(shapes) > 1 else shapes[0]
    how: list[str] = [section.precision, section.parallel, section.optimizer.name]
    how += ["gradient checkpointing"] if section.gradient_checkpointing else []
    content = msgspec.json.encode([order.build, order.args, code, shape, how], order="sorted")
    return digest_bytes(content).removeprefix("sha256:")[:16]


def recall(root: Path, key: str) -> dict[str, int]:
    """Kind of device to samples at once; empty where nothing ever ran out."""
    return _read(root).fits.get(key, {})


def remember(root: Path, key: str, device: str, samples: int) -> None:
    """For the next run of the same model on that kind of device."""
    with lock(root / f".{MEMORY}.lock"):
        known = _read(root)
        fits = {**known.fits, key: {**known.fits.get(key, {}), device: samples}}
        write_atomic(root / MEMORY, replace(known, fits=fits).to_json())


def fewer_at_once(order: WorkOrder, store: Store, decision: Decision) -> tuple[Decision, str]:
    """In place of giving up because memory ran out: a restart with half, and the words for it.

    Any other decision comes back as it is, with no words.
    """
    failure = decision.failure
    if decision.action != "give-up" or failure is None or failure.type != "OutOfMemory":
        return decision, ""
    folder = Path(order.folder)
    before = read_execution(folder)
    execution = (
        before.execution
        if before
        else asked_for(order.section, order.section.most_workers, order.steps)
    )
    now = min(execution.micro_batch or execution.samples, execution.samples)
    if now <= 1:
        return replace(decision, failure=_hopeless(failure)), ""
    half = now // 2
    chosen = Chosen(
        device=before.device if before else failure.device,
        execution=replace(execution, micro_batch=half),
    )
    write_execution(folder, chosen)
    remember(store.root, order.memory_key, failure.device, half)
    words = (
        f"worker {failure.rank} ran out of memory ({failure.device}): each worker now takes {half} "
        f"sample{'s' if half != 1 else ''} at once instead of {now}; the batch stays "
        f"{order.section.batch_size}. This is remembered for this kind of device"
    )
    return Decision(action="restart", reason=failure.what, budgeted=False), words


def _hopeless(failure: Failure) -> Failure:
    return replace(
        failure,
        type="TrainingError",
        what=f"{failure.what}; it was one sample at a time, so less is not possible",
        mend='use a smaller model or input, train.precision = "bfloat16", train.parallel = "shard" '
        "with more train.workers, or a device with more memory",
    )


def _read(root: Path) -> Memory:
    """A missing or damaged file knows nothing; what it knew is found out again."""
    try:
        return Memory.from_json((root / MEMORY).read_bytes())
    except (OSError, msgspec.DecodeError):
        return Memory()
