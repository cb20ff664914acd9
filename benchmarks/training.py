"""Ours against hand-written loops, Lightning, Accelerate, Keras and Ray Train: samples a second of whole trainings.

Run with ``make bench-peers``, or ``python -m benchmarks.training [--work cnn,mlp,transformer]
[--workers 1,2] [--contenders NAME,NAME] [--rounds N] [--results FILE --for SECONDS] [--json]``. Each contender is one
file in ``training_contenders/``, written as the documentation of its framework teaches it: the same model,
batch, precision and data on disk. Each turn is a process of its own (with two workers, as many as the
framework starts), has all cores as its framework divides them, and is timed after its warm-up. The
contenders take turns round by round; ratios are to ours in the same round. With ``--results`` turns are kept as
they end and a further call goes on where one was stopped.

The bars: ours at least as fast as the best loop written by hand, ahead of every framework, at most
50 µs a step over the bare step of the same kind; with two workers no worse than bare DDP.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Row, options, peers_python, row_of, show
from benchmarks.training_contenders import OTHER_FRAMEWORKS, TABLE
from benchmarks.training_parts import in_words
from benchmarks.training_turns import Case, Turns, environment_of
from benchmarks.training_work import WORKS, make_data

OURS, BARE, BARE_DIRECT = "modelyard", "bare step of our kind", "bare step our optimizer"
UNFINISHED_EXIT = 75


def chosen_contenders(asked: str, case: Case) -> tuple[list[str], dict[str, str]]:
    """Those that can run this, and of the others why they cannot; with ``asked`` only those, by name."""
    names = [name.strip() for name in asked.split(",") if name.strip()]
    if unknown := [name for name in names if name not in TABLE]:
        raise SystemExit(f"no contender {unknown[0]!r}; there are: {', '.join(TABLE)}")
    reasons = {
        name: TABLE[name].missing(peers_python(), environment_of(TABLE[name]), case.workers)
        for name in names or [name for name in TABLE if name not in OTHER_FRAMEWORKS]
    }
    return (
        [name for name, reason in reasons.items() if not reason],
        {name: reason for name, reason in reasons.items() if reason},
    )


def rows_of(case: Case, turns: Turns, names: list[str]) -> tuple[list[Row], dict[str, int]]:
    """A row for each of them, and of how many rounds it is: those that the baseline has too."""
    base = turns.measures(case, OURS if OURS in names else names[0])
    rows, rounds = [], {}
    for name in names:
        found = {n: rate for n, rate in turns.measures(case, name).items() if n in base}
        if found:
            rows.append(row_of(name, list(found.values()), [base[number] for number in found]))
            rounds[name] = len(found)
    return rows, rounds


def verdict(rows: list[Row], case: Case) -> str:
    """Ours against the best of each group in words, by the medians of ratios within rounds."""
    by_name = {row.name: row for row in rows}
    ours = by_name.get(OURS)
    if ours is None:
        return ""
    said = []
    for group in ("by hand", "framework"):
        rivals = [row for row in rows if TABLE[row.name].group == group]
        if rivals:
            best = max(rivals, key=lambda row: row.ratio)
            said.append(f"{ours.ratio / best.ratio:.2f} of the best {group} ({best.name})")
    for name in (BARE, BARE_DIRECT):
        if bare := by_name.get(name):
            over = 1e6 * case.work.batch * (1 / ours.median - 1 / bare.median)
            said.append(f"{over:+.0f} µs a step over the {name}")
    return f"ours: {'; '.join(said)}\n"


def tell(case: Case, turns: Turns, names: list[str], left_out: dict[str, str], json: bool) -> None:
    """The table of one case, what it says of ours, where the time goes, and who is not in it."""
    rows, rounds = rows_of(case, turns, names)
    most = max(rounds.values())
    show(f"{case.title}, {most} rounds", "samples/s", rows, as_json=json)
    if json:
        return
    fewer = [f"{name}: {count}" for name, count in rounds.items() if count < most]
    sys.stdout.write(f"rounds of {', '.join(fewer)}\n" if fewer else "")
    sys.stdout.write(verdict(rows, case))
    ours, bare = turns.parts(case, OURS), turns.parts(case, BARE)
    if ours and bare:
        sys.stdout.write(in_words(ours, bare))
    absent = {name: "no turn yet" for name in names if name not in rounds}
    for name, reason in {**left_out, **absent}.items():
        sys.stdout.write(f"not in the table: {name} ({reason})\n")
    sys.stdout.write("\n")
    sys.stdout.flush()


def steps_of(work: str, workers: str) -> int:
    """Small models exchange more than they compute: with several workers their steps take longer."""
    return WORKS[work].steps // (4 if work == "mlp" and workers != "1" else 1)


def read_options() -> argparse.Namespace:
    parser = options(__doc__ or "", rounds=5)
    parser.add_argument("--work", default=",".join(WORKS), help="default: all three")
    parser.add_argument("--workers", default="1,2", help="default 1,2")
    parser.add_argument("--contenders", default="", help="names, with commas; default: all")
    parser.add_argument("--steps", type=int, help="timed, of each turn; default: by the work")
    parser.add_argument("--warm-up", type=int, default=30, help="steps before; default 30")
    parser.add_argument("--results", type=Path, help="keep each turn in this file, and go on there")
    parser.add_argument(
        "--for",
        dest="seconds",
        type=float,
        default=float("inf"),
        help="begin no round of a case after so many seconds; ends with exit code 75 if some are left",
    )
    parser.add_argument("--tables", action="store_true", help="only show what --results holds")
    return parser.parse_args()


def main() -> None:
    chosen, began = read_options(), time.monotonic()
    cases = [
        Case(WORKS[name], int(workers), chosen.steps or steps_of(name, workers), chosen.warm_up)
        for workers in chosen.workers.split(",")
        for name in chosen.work.split(",")
    ]
    contenders = {case: chosen_contenders(chosen.contenders, case) for case in cases}
    with tempfile.TemporaryDirectory(prefix="benchmark-training-") as folder:
        turns, place = Turns(chosen.results), Path(folder)
        if chosen.results is not None:
            place = chosen.results.with_suffix(".data")
        for number in range(0 if chosen.tables else chosen.rounds):
            for case in cases:
                names, _ = contenders[case]
                missing = turns.missing(case, names, number)
                if missing and time.monotonic() - began > chosen.seconds:
                    sys.stderr.write(f"to go on: {case.title}, round {number + 1}\n")
                    sys.exit(UNFINISHED_EXIT)
                for name in missing:
                    turns.take(case, name, number, make_data(place, case.work))
        for case, (names, left_out) in contenders.items():
            if not chosen.tables and not chosen.json:
                turns.take_parts(case, [n for n in (OURS, BARE) if n in names], place)
            tell(case, turns, names, left_out, chosen.json)


if __name__ == "__main__":
    main()
