"""The record of a proof that a resume is exact."""

from modelyard.spec.record import Record


class Proof(Record, frozen=True, kw_only=True):
    """What `yard verify-resume` found: some steps unbroken, and after a SIGKILL and a resume."""

    created: str
    holds: bool
    steps: int
    workers: int
    device: str
    killed_at: int
    resumed_at: int
    """The step of the checkpoint that training went on from."""
    tensors: int
    """Weights and optimizer state that were compared."""
    different: tuple[str, ...] = ()
    """Those that are not bit-equal."""
    largest_difference: float = 0.0
    other_workers: int = 0
    """From the same checkpoint it was also gone on with so many workers."""
    same_order: bool = True
    """The steps were given the same samples: after the resume, and with either number of workers."""
    batches_seen: int = 0
    """Global batches that were written down as the workers took them, and compared."""
    loss_gap: float = 0.0
    """Largest difference of a step's loss with the other number of workers, relative."""
    loss_allowed: float = 1e-3
    loss_decides: bool = True
    """False for a model that draws random numbers even where it is not trained."""
    held_still: bool = False
    """The losses are of the model as it is judged: in training it draws numbers or mixes samples."""
    seconds: float = 0.0
