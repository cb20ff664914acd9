"""``yard verify-resume``: prove that a training that was killed goes on as if nothing had happened."""

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelyard.spec.records import Proof

EXPLAINED = """\
Trains a few steps unbroken. Trains them again, kills a worker with SIGKILL in the middle, lets the run go
on from its checkpoint, and compares: on a CPU every weight and all of the optimizer's state must be
bit-equal, and every step must have been given the same samples, as its workers wrote down what they took.
From the same checkpoint it also goes on with another number of workers: each global batch must hold the
same samples, and the loss of each step must be the same but for rounding. Dropout draws other numbers for
other workers, and a batch norm sees other neighbours; where a model has such, this last comparison
trains it as it is judged, without them, and says so.

Everything happens in a scratch folder of the store, which is removed. The proof is kept on the record of
the run that `yard train` makes of the same project, data and code: `yard runs RUN` shows it.
Exit code 0: it holds; 1: it does not.

  yard verify-resume
  yard verify-resume --steps 50 train.workers=2
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    from modelyard.cli.output import project_arguments

    parser.epilog = EXPLAINED
    parser.add_argument(
        "--steps", type=int, default=20, help="how many steps to train (default: 20)"
    )
    project_arguments(parser)


def run(parsed: argparse.Namespace) -> int:
    from modelyard import flow
    from modelyard.cli.output import open_project, print_json, print_pairs
    from modelyard.training.progress import progress_for

    project, _ = open_project(parsed)
    progress = progress_for(sys.stderr)
    try:
        proof = flow.verify_resume(project, steps=parsed.steps, observers=[progress])
    finally:
        progress.close()
    print_json(proof) if parsed.json else print_pairs(words(proof))
    return 0 if proof.holds else 1


def words(proof: "Proof") -> list[tuple[str, str]]:
    """What was compared, and what came out."""
    plural = "s" if proof.workers != 1 else ""
    rows = [
        ("resume", "exact" if proof.holds else "NOT exact"),
        (
            "compared",
            f"{proof.steps} steps on {proof.workers} worker{plural} ({proof.device}); killed at step "
            f"{proof.killed_at}, went on from step {proof.resumed_at}",
        ),
        ("state", _state(proof)),
    ]
    order = "the same samples" if proof.same_order else "OTHER samples"
    rows.append(("order", f"{order} in each of {proof.batches_seen} batches, as they were taken"))
    if proof.other_workers:
        rows.append((f"on {proof.other_workers}", _loss(proof)))
    return rows


def _loss(proof: "Proof") -> str:
    fits = proof.loss_gap <= proof.loss_allowed
    if not proof.loss_decides:
        return (
            f"loss apart by {proof.loss_gap:.3g}; that says nothing, since the model draws random "
            "numbers even where it is not trained"
        )
    verdict = "within rounding" if fits else f"NOT within rounding ({proof.loss_allowed:g})"
    how = "; without what draws or mixes samples in training (dropout, batch norm)"
    return f"loss apart by {proof.loss_gap:.3g}, {verdict}" + (how if proof.held_still else "")


def _state(proof: "Proof") -> str:
    if not proof.different:
        return f"{proof.tensors} tensors of weights and optimizer, bit-equal"
    shown = ", ".join(proof.different[:3])
    return (
        f"{len(proof.different)} of {proof.tensors} tensors differ by up to "
        f"{proof.largest_difference:.3g}: {shown}"
    )
