"""``yard tune``: search for better fields; each trial is a run that can be resumed and compared."""

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelyard.training.tuning.search import Trial


def arguments(parser: argparse.ArgumentParser) -> None:
    from modelyard.cli.output import project_arguments

    project_arguments(parser)
    parser.add_argument(
        "--trials", type=int, help="how many trainings to try (default: tune.trials)"
    )


def run(parsed: argparse.Namespace) -> int:
    from modelyard.cli.output import open_project, print_json, print_table
    from modelyard.flow import tune

    if parsed.trials:
        parsed.overrides.append(f"tune.trials={parsed.trials}")
    project, _ = open_project(parsed)
    study = tune(project, on_trial=_tell)
    if parsed.json:
        print_json({"best": study.best, "study": study})
        return 0
    ranked = sorted(
        study.trials,
        key=lambda trial: (trial.value is None, trial.value or 0.0),
        reverse=study.higher_is_better,
    )
    rows = [
        {
            "trial": item.number,
            study.metric: item.value,
            **item.fields,
            "run": item.run or item.error,
        }
        for item in ranked[:10]
    ]
    print_table(rows, empty="no trials")
    fields = " ".join(f"{name}={value}" for name, value in study.best.fields.items())
    print(f"take the best:  yard up {fields}")
    return 0


def _tell(trial: "Trial") -> None:
    fields = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in trial.fields.items()
    )
    result = f"{trial.value:.5g}" if trial.value is not None else f"failed: {trial.error}"
    print(f"trial {trial.number:<3} {result:<10} {fields}", file=sys.stderr, flush=True)
