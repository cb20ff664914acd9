"""What our loop adds to a bare step: both in turns of a quarter second, in one process, on one worker.

Run with ``python -m benchmarks.overhead [--work cnn,mlp,transformer] [--rounds N] [--json]``. Each round is a real
``modelyard.train`` of its own: data on disk, shuffled; events, meetings, heartbeats, everything that ships. Between two windows of
its loop, and outside of their time, the same worker takes as many bare steps: a copy of the model,
batches that lie in memory as tensors, AdamW called directly, in the kernels that our run chose. Two processes
differ by more than what is looked for here (tens of microseconds); two windows one after the other do not.

The bar: at most 50 µs a step.
"""

import argparse
import copy
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import options
from benchmarks.training_work import WORKS, Turn, build, make_data

BAR = 50.0
_WARM_UP = 5
"""Windows that are left out: memory, kernels, the feed's choice, the interval between meetings."""
_SECONDS = {"cnn": 8, "mlp": 8, "transformer": 20}
_MODELS = """\
from benchmarks.overhead import paired

def model():
    return paired("{work}", "{place}", "{found}")
"""


def paired(work: str, place: str, found: str) -> Any:
    """In the worker: the model, and bare steps of a copy of it between the windows of the loop."""
    model = build(WORKS[work])
    if not _in_this_worker:  # which may build its model more than once
        _in_this_worker.append(True)
        _take_turns(Turn(WORKS[work], Path(place), 1, 0, 0, ()), copy.deepcopy(model), Path(found))
    return model


_in_this_worker: list[bool] = []


def _take_turns(turn: Turn, model: Any, found: Path) -> None:
    from modelyard.backends.pytorch import PyTorch
    from modelyard.training.meeting import Meetings

    begin, hold, begin_window = PyTorch.begin, Meetings.hold, Meetings.begin_window
    began, steps, bare, pairs = time.perf_counter(), 0, None, list[tuple[float, float]]()

    def begin_and_see(self: Any, *given: Any, **named: Any) -> Any:
        nonlocal bare
        state = begin(self, *given, **named)
        bare = _bare_steps(turn, model, state.execution)
        return state

    def hold_and_count(self: Any, **named: Any) -> Any:
        nonlocal steps
        window = hold(self, **named)
        steps = window.steps
        return window

    def take_turns(self: Any) -> None:
        nonlocal began
        ours = (time.perf_counter() - began) / steps
        if bare is None:
            raise RuntimeError("the loop began without a state")
        pairs.append((1e6 * ours, 1e6 * bare(steps)))
        found.write_text(json.dumps(pairs))
        began = time.perf_counter()
        begin_window(self)

    PyTorch.begin, Meetings.hold = begin_and_see, hold_and_count  # type: ignore[method-assign]
    Meetings.begin_window = take_turns  # type: ignore[method-assign]


def _bare_steps(turn: Turn, model: Any, execution: Any) -> Any:
    """Takes so many steps; seconds a step."""
    import torch

    from benchmarks.training_contenders.bare_step import batches_of, finish, optimize
    from modelyard.backends.pytorch_kernels import kernels_of

    kinds = ["bytes", "direct", "fused"] + ["channels-last"] * (execution.channels_last is True)
    turn = replace(turn, options=tuple(kinds))
    if "channels-last" in kinds and turn.work.name == "cnn":
        model = model.to(memory_format=torch.channels_last)
    update, in_model_form = optimize(model, turn.options), finish(turn)
    batches, kernels = itertools.cycle(batches_of(turn)), kernels_of(model, execution)

    def steps(count: int) -> float:
        began = time.perf_counter()
        with kernels:
            for pixels, targets in itertools.islice(batches, count):
                outputs = model(in_model_form(pixels))
                torch.nn.functional.cross_entropy(outputs, targets).backward()
                update()
        return (time.perf_counter() - began) / count

    return steps


def one_round(work: str, folder: Path) -> list[tuple[float, float]]:
    """Microseconds a step of ours and of the bare step after it, window by window."""
    import modelyard
    from benchmarks.training_contenders.modelyard_train import project

    place, found = make_data(folder, WORKS[work]), folder / f"{work}.json"
    rate = WORKS[work].steps / 2  # a second, of the fastest
    turn = Turn(WORKS[work], place, 1, round(_SECONDS[work] * rate), 0, ())
    root = project(turn)
    models = _MODELS.format(work=work, place=place, found=found)
    (root / "models.py").write_text(models)
    text = (root / "yard.toml").read_text()
    table = text[text.index("[model]") : text.index("[train]")]
    (root / "yard.toml").write_text(text.replace(table, '[model]\nbuild = "models:model"\n'))
    modelyard.prepare(root)
    shutil.rmtree(root / ".yard" / "runs", ignore_errors=True)
    modelyard.train(root)
    pairs: list[tuple[float, float]] = json.loads(found.read_text())
    return pairs[_WARM_UP:]


def read_options() -> argparse.Namespace:
    parser = options(__doc__ or "", rounds=3)
    parser.add_argument("--work", default=",".join(WORKS), help="default: all three")
    return parser.parse_args()


def main() -> None:
    chosen = read_options()
    with tempfile.TemporaryDirectory(prefix="benchmark-overhead-") as folder:
        for work in chosen.work.split(","):
            rounds = [one_round(work, Path(folder)) for _ in range(chosen.rounds)]
            tell(work, rounds, as_json=chosen.json)


def tell(work: str, rounds: list[list[tuple[float, float]]], *, as_json: bool) -> None:
    pairs = [pair for one in rounds for pair in one]
    more = sorted(ours - bare for ours, bare in pairs)
    low, middle, high = statistics.quantiles(more, n=4)
    ours, bare = (statistics.median(values) for values in zip(*pairs, strict=True))
    each = [statistics.median(ours - bare for ours, bare in one) for one in rounds]
    if as_json:
        said = {"work": work, "ours": ours, "bare": bare, "more": middle, "quartiles": [low, high]}
        sys.stdout.write(json.dumps({**said, "rounds": each}) + "\n")
        return
    sys.stdout.write(
        f"{WORKS[work].title}, batch {WORKS[work].batch}: {len(pairs)} pairs of windows\n"
        f"  ours {ours:.0f} µs a step, bare {bare:.0f}; ours takes {middle:+.0f} µs more "
        f"(quartiles {low:+.0f} to {high:+.0f}; rounds {', '.join(f'{one:+.0f}' for one in each)}): "
        f"{'within' if middle <= BAR else 'over'} {BAR:.0f} µs\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
