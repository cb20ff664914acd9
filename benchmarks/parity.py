"""Do the frameworks train alike? The same models, first weights and batches in each, and every optimizer beside its rule.

``python -m benchmarks.parity`` runs each framework in a process of its own and prints three tables:

- models: the loss of the first step and after so many steps, through Modelyard, against a plain loop in
  float64 that is written here with PyTorch alone. Bars: 1e-5 at the first step, 1e-3 relative after 20.
- optimizers: the weights of a linear model after 20 steps, against the paper's rule in NumPy float64
  (``tests/backends/rules.py``), and the framework's own optimizer against the same rule. Where it
  keeps to another rule, the difference says so.
- schedules: the largest relative difference of a learning rate from the framework's own schedule.

``--markdown`` writes the tables as they are in docs/frameworks.md.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import util
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.harness import ROOT
from benchmarks.parity_models import (
    CLASSES,
    KINDS,
    TRANSFORMER,
    VOCABULARY,
    Kind,
    batches,
    weights_of,
)

FRAMEWORKS = {
    "pytorch": ("pytorch", ""),
    "keras on tensorflow": ("keras", "tensorflow"),
    "keras on jax": ("keras", "jax"),
    "keras on pytorch": ("keras", "torch"),
    "jax": ("jax", ""),
}
"""Name -> backend, and what Keras stands on."""
FIRST, AFTER, WEIGHTS, RATES = 1e-5, 1e-3, 2e-5, 1e-5
"""Bars: of the first loss, of the last one relative to it, of a weight after 20 steps of a rule, of a rate relative to it."""
OWN = 1e-4
"""Of a weight after 20 steps of a framework's own optimizer: those with another rule are off by far more."""
STEPS = 20


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.splitlines()[0])  # fmt: skip
    parser.add_argument("--steps", type=int, default=STEPS, help=f"default {STEPS}")
    parser.add_argument("--only", default="", help="frameworks, with commas between them")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--markdown", action="store_true", help="print the tables as in docs")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.child:
        sys.stdout.write("\n" + json.dumps(_measured(asked.child, asked.steps)) + "\n")
        return 0
    names = [name.strip() for name in asked.only.split(",") if name.strip()] or list(FRAMEWORKS)
    found = {name: _in_a_process(name, asked.steps) for name in ("reference", *names)}
    rows = [*model_rows(found), *rule_rows(found), *schedule_rows(found)]
    if asked.json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    else:
        _print(rows, asked.steps, markdown=asked.markdown)
    return 0 if all(row["held"] for row in rows) else 1


def _in_a_process(name: str, steps: int) -> dict[str, Any]:
    """What ``_measured`` finds there: Keras is imported with one framework below it."""
    below = FRAMEWORKS[name][1] if name in FRAMEWORKS else ""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.parity", "--child", name, "--steps", str(steps)],
        cwd=ROOT,
        env={**environment, **({"KERAS_BACKEND": below} if below else {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _measured(name: str, steps: int) -> dict[str, Any]:
    if name == "reference":
        return {"losses": {kind.name: _plainly(kind, steps) for kind in KINDS.values()}}
    backend, _ = FRAMEWORKS[name]
    losses = {kind.name: _by_modelyard(backend, kind, steps) for kind in KINDS.values()}
    from benchmarks.parity_models import own_schedules

    schedules = dict(own_schedules.gaps(backend))
    return {"losses": losses, "rules": dict(_rules(backend)), "schedules": schedules}


def _plainly(kind: Kind, steps: int) -> list[float]:
    """A loop by hand, in float64, with nothing of Modelyard in it."""
    import torch

    from benchmarks.parity_models.in_pytorch import build

    model = build(kind, weights_of(kind)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=kind.rate, momentum=0.9)
    losses = []
    for inputs, targets in batches(kind, steps):
        given = torch.from_numpy(inputs)
        outputs = model(given.double() if given.is_floating_point() else given)
        loss = torch.nn.functional.cross_entropy(outputs, torch.from_numpy(targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _by_modelyard(name: str, kind: Kind, steps: int) -> list[float]:
    from modelyard.backends import open_backend
    from modelyard.backends.base import Batch, OptimizerSettings, StepSettings
    from modelyard.spec.records import TaskSpec
    from modelyard.spec.signature import Signature, Tensor
    from modelyard.spec.work import World

    classes = tuple(str(number) for number in range(CLASSES))
    task = TaskSpec(type="classification", target="label", loss="cross-entropy", classes=classes)
    whole = kind is TRANSFORMER
    taken = Tensor(
        name="input",
        dtype="int64" if whole else "float32",
        shape=(None, *kind.input_shape),
        below=VOCABULARY if whole else None,
    )
    given = Tensor(name="output", dtype="float32", shape=(None, CLASSES))
    model = _build(name)(kind, weights_of(kind))
    backend, losses = open_backend(name), []
    with backend.join(World(rank=0, size=1, rendezvous=""), device="cpu", threads=1):
        settings = OptimizerSettings(name="sgd", momentum=0.9, weight_decay=0.0)
        signature = Signature(inputs=(taken,), outputs=(given,))
        state = backend.begin(model, task, settings, signature)
        for seed, (inputs, targets) in enumerate(batches(kind, steps)):
            batch = Batch(inputs=inputs, targets=targets, global_size=len(targets))
            state, result = backend.step(
                state, batch, StepSettings(learning_rate=kind.rate, seed=seed)
            )
            losses.append(float(result.loss))
    return losses


def _build(name: str) -> Callable[..., object]:
    module = __import__(f"benchmarks.parity_models.in_{name}", fromlist=["build"])
    build: Callable[..., object] = module.build
    return build


def _rules(name: str) -> Iterator[tuple[str, dict[str, float | None]]]:
    """Of each optimizer: the largest difference of a weight from the rule, ours and the framework's own."""
    from benchmarks.parity_models import own_optimizers
    from modelyard.backends import open_backend

    rules = rules_module()
    for title, chosen in own_optimizers.settings().items():
        expected = rules.by_hand(chosen)
        ours = rules.by_backend(open_backend(name), [own_optimizers.linear(name)], chosen)
        theirs = own_optimizers.train(name, chosen, rules)
        yield (
            title,
            {
                "ours": _gap(ours, expected),
                "own": None if theirs is None else _gap(theirs, expected),
            },
        )


def rules_module() -> ModuleType:
    """The papers' rules, which are the tests'."""
    spec = util.spec_from_file_location("rules", ROOT / "tests" / "backends" / "rules.py")
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _gap(found: Sequence[Any], expected: Sequence[Any]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))


def model_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each model and framework: first and last loss, how far from the reference, and whether within the bars."""
    rows = []
    for kind, expected in found["reference"]["losses"].items():
        for name, measured in found.items():
            if name == "reference":
                continue
            losses = measured["losses"][kind]
            first = abs(losses[0] - expected[0])
            after = abs(losses[-1] - expected[-1]) / abs(expected[-1])
            rows.append(
                {
                    "model": kind,
                    "framework": name,
                    "first_loss": losses[0],
                    "first_difference": first,
                    "last_loss": losses[-1],
                    "last_difference": after,
                    "held": first <= FIRST and after <= AFTER,
                }
            )
    return rows


def rule_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each optimizer and framework."""
    return [
        {
            "optimizer": title,
            "framework": name,
            "ours": gaps["ours"],
            "own": gaps["own"],
            "held": gaps["ours"] <= WEIGHTS,
        }
        for name, measured in found.items()
        for title, gaps in measured.get("rules", {}).items()
    ]


def schedule_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each schedule and framework that has it; that of Keras is the same whatever it stands on."""
    return [
        {"schedule": title, "framework": name, "gap": gap, "held": gap is None or gap <= RATES}
        for name, measured in found.items()
        for title, gap in measured.get("schedules", {}).items()
    ]


def _print(rows: list[dict[str, Any]], steps: int, *, markdown: bool) -> None:
    models = [row for row in rows if "model" in row]
    names = list(dict.fromkeys(row["framework"] for row in models))
    head = ["model", "framework", "loss, step 1", "off by", f"loss, step {steps}", "off by", ""]
    table = [
        [
            row["model"], row["framework"], f"{row['first_loss']:.6f}", f"{row['first_difference']:.0e}",
            f"{row['last_loss']:.6f}", f"{row['last_difference']:.0e}", _held(row),
        ]
        for row in models
    ]  # fmt: skip
    _table(head, table, markdown=markdown)
    sys.stdout.write("\n")
    _grid(rows, "optimizer", "optimizer: ours (own)", names, _gaps_cell, markdown=markdown)
    sys.stdout.write("\n")
    _grid(rows, "schedule", "schedule", names, _rate_cell, markdown=markdown)


def _grid(
    rows: list[dict[str, Any]],
    kind: str,
    corner: str,
    names: list[str],
    cell: Callable[[dict[str, Any]], str],
    *,
    markdown: bool,
) -> None:
    """A line for each of its ``kind``, a column for each framework."""
    cells = {(row[kind], row["framework"]): row for row in rows if kind in row}
    body = []
    for title in dict.fromkeys(title for title, _ in cells):
        mine = [cells[title, name] for name in names]
        body.append([title, *map(cell, mine), _held(*mine)])
    _table([corner, *names, ""], body, markdown=markdown)


def _held(*rows: dict[str, Any]) -> str:
    return "" if all(row["held"] for row in rows) else "BROKEN"


def _gaps_cell(row: dict[str, Any]) -> str:
    own = "–" if row["own"] is None else f"{row['own']:.0e}"
    return f"{row['ours']:.0e} ({own})"


def _rate_cell(row: dict[str, Any]) -> str:
    return "–" if row["gap"] is None else f"{row['gap']:.0e}"


def _table(head: list[str], body: list[list[str]], *, markdown: bool) -> None:
    if not any(row[-1] for row in body):
        head, body = head[:-1], [row[:-1] for row in body]
    if markdown:
        lines = [head, ["---"] * len(head), *body]
        sys.stdout.write("".join(f"| {' | '.join(line)} |\n" for line in lines))
        return
    widths = [max(len(line[place]) for line in (head, *body)) for place in range(len(head))]
    for line in (head, *body):
        sys.stdout.write("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() + "\n")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
