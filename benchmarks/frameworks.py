"""Each framework by ours against a loop written by hand in it and against Keras ``fit``: samples a second.

Run with ``python -m benchmarks.frameworks [--work cnn,mlp,transformer] [--groups TensorFlow,JAX,…] [--rounds N]
[--results FILE] [--json]`` (the peers come from ``make bench-peers``). The same work, data and way of measuring
as ``benchmarks.training``: each turn is a process of its own, contenders take turns round by round, ratios
are to ours in the same round, on one process, as ``fit`` cannot have two here.

The bars: ours at least as fast as the best loop written by hand in that framework, and ahead of ``fit`` everywhere.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import options, row_of, show
from benchmarks.training import chosen_contenders, steps_of
from benchmarks.training_turns import Case, Turns
from benchmarks.training_work import WORKS, make_data

GROUPS = {
    "TensorFlow": ("modelyard keras (TensorFlow)", ("tf.function", "Keras (TensorFlow)")),
    "TensorFlow with XLA": (
        "modelyard keras (TensorFlow) XLA",
        ("tf.function XLA", "Keras (TensorFlow) XLA"),
    ),
    "JAX": ("modelyard jax", ("jax.jit", "Keras (JAX)")),
    "Keras on JAX": ("modelyard keras (JAX)", ("jax.jit", "Keras (JAX)")),
    "Keras on PyTorch": ("modelyard keras (PyTorch)", ("Keras (PyTorch)",)),
}
"""Ours, and whom it is compared with."""


def tell(group: str, case: Case, turns: Turns, *, json: bool) -> None:
    """The table of one group, and ours against each of the others by the medians of ratios within rounds."""
    ours, rivals = GROUPS[group]
    base = turns.measures(case, ours)
    rows = []
    for name in (ours, *rivals):
        found = {
            number: rate for number, rate in turns.measures(case, name).items() if number in base
        }
        if found:
            rows.append(row_of(name, list(found.values()), [base[number] for number in found]))
    show(f"{group}: {case.title}", "samples/s", rows, as_json=json)
    if not json:
        said = [f"{1 / row.ratio:.2f} of {row.name}" for row in rows[1:]]
        sys.stdout.write(f"ours: {', '.join(said)}\n\n")
        sys.stdout.flush()


def read_options() -> argparse.Namespace:
    parser = options(__doc__ or "", rounds=5)
    parser.add_argument("--work", default=",".join(WORKS), help="default: all three")
    parser.add_argument("--groups", default=",".join(GROUPS), help="default: all")
    parser.add_argument("--warm-up", type=int, default=30, help="steps before; default 30")
    parser.add_argument("--steps", type=int, help="timed, of each turn; default: by the work")
    parser.add_argument("--results", type=Path, help="keep each turn in this file, and go on there")
    return parser.parse_args()


def main() -> None:
    chosen = read_options()
    groups = chosen.groups.split(",")
    if unknown := [name for name in groups if name not in GROUPS]:
        raise SystemExit(f"no group {unknown[0]!r}; there are: {', '.join(GROUPS)}")
    asked = ",".join(dict.fromkeys(n for g in groups for n in (GROUPS[g][0], *GROUPS[g][1])))
    turns = Turns(chosen.results)
    with tempfile.TemporaryDirectory(prefix="benchmark-frameworks-") as folder:
        place = chosen.results.with_suffix(".data") if chosen.results else Path(folder)
        for name in chosen.work.split(","):
            steps = chosen.steps or steps_of(name, "1")
            case = Case(WORKS[name], 1, steps, chosen.warm_up)
            names, left_out = chosen_contenders(asked, case)
            for number in range(chosen.rounds):
                for contender in turns.missing(case, names, number):
                    turns.take(case, contender, number, make_data(place, case.work))
            for group in groups:
                tell(group, case, turns, json=chosen.json)
            for absent, reason in left_out.items():
                sys.stdout.write(f"not in the tables: {absent} ({reason})\n")


if __name__ == "__main__":
    main()
