"""Search over ``[tune] space``: Optuna proposes, a run answers, the best fields are told.

A search keeps no state of its own. The sampler is seeded and runs are keyed by their inputs, so the
same command after an interruption proposes the same trials again and finds the finished ones done.
Sampler: tree-structured Parzen estimator (Bergstra et al. 2011, *Algorithms for Hyper-Parameter Optimization*).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from modelyard.engines.forerunner import kept
from modelyard.spec.errors import (
    MissingExtraError,
    Mistake,
    ProjectError,
    TrainingError,
    UsageError,
)
from modelyard.spec.project import Project, SearchSpace
from modelyard.spec.records import Record, Run


class Trial(Record, frozen=True, kw_only=True):
    """One trial: the fields that were tried and what came of it."""

    number: int
    fields: dict[str, Any]
    run: str = ""
    value: float | None = None
    """The validation metric; None where the run failed."""
    error: str = ""


class Study(Record, frozen=True, kw_only=True):
    """All trials of one search."""

    metric: str
    higher_is_better: bool
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """Raises TrainingError where every trial failed."""
        return best(self.trials, higher_is_better=self.higher_is_better)


def best(trials: tuple[Trial, ...], *, higher_is_better: bool) -> Trial:
    """The trial with the best value. Raises TrainingError where none has one."""
    done = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    if not done:
        reason = trials[0].error if trials else "there were no trials"
        raise TrainingError(f"no trial gave a result: {reason}", "`yard check` finds most causes")
    return sorted(done, key=lambda trial: trial.value or 0.0, reverse=higher_is_better)[0]


def search(
    project: Project,
    *,
    higher_is_better: bool,
    metric: str,
    try_fields: Callable[[Mapping[str, Any]], Run],
    on_trial: Callable[[Trial], None],
) -> Study:
    """Run ``tune.trials`` trials; ``try_fields`` trains with some fields replaced and returns the run.

    A trial whose training fails is told to the sampler as failed and the search goes on; a mistake in
    the space itself (an unknown field, say) ends it. Raises ProjectError, MissingExtraError.
    """
    _check(project.tune.space)
    study = _open(project.tune.seed, higher_is_better=higher_is_better)
    trials: list[Trial] = []
    with kept():  # the framework is imported once for all trials
        for number in range(project.tune.trials):
            proposal = study.ask()
            fields = {
                name: suggest(proposal, name, space)
                for name, space in sorted(project.tune.space.items())
            }
            trial = _try(number, fields, f"validation/{metric}", try_fields)
            study.tell(proposal, trial.value, state=None if trial.value is not None else _failed())
            trials.append(trial)
            on_trial(trial)
    return Study(metric=metric, higher_is_better=higher_is_better, trials=tuple(trials))


def _try(
    number: int, fields: dict[str, Any], metric: str, try_fields: Callable[[Mapping[str, Any]], Run]
) -> Trial:
    try:
        run = try_fields(fields)
    except TrainingError as error:
        return Trial(number=number, fields=fields, error=error.what)
    value = run.metrics.get(metric)
    return Trial(
        number=number,
        fields=fields,
        run=run.id,
        value=value if value is not None and math.isfinite(value) else None,
    )


def suggest(proposal: Any, name: str, space: SearchSpace) -> Any:
    """Ask an Optuna trial for a value of the field ``name``."""
    if space.choices is not None:
        return proposal.suggest_categorical(name, space.choices)
    if space.integer:
        return proposal.suggest_int(name, int(space.low or 0), int(space.high or 0), log=space.log)
    return proposal.suggest_float(name, space.low, space.high, log=space.log)


def _check(space: Mapping[str, SearchSpace]) -> None:
    if not space:
        raise UsageError(
            "there is nothing to search: tune.space is empty",
            'add e.g. space = { "train.optimizer.lr" = { low = 1e-4, high = 1e-1, log = true } } under [tune]',
        )
    mistakes = [
        Mistake(
            f"tune.space.{name}",
            problem,
            "{ low, high } with low < high, or { choices = […] }",
            "",
            "yard.toml",
        )
        for name, item in space.items()
        if (problem := _problem(item))
    ]
    if mistakes:
        raise ProjectError(mistakes)


def _problem(item: SearchSpace) -> str:
    if item.choices is not None:
        return "" if item.choices else "choices is empty"
    if item.low is None or item.high is None:
        return "low or high is missing"
    if item.low >= item.high:
        return f"low {item.low:g} is not below high {item.high:g}"
    return "a logarithmic range must begin above 0" if item.log and item.low <= 0 else ""


def _open(seed: int, *, higher_is_better: bool) -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingExtraError("a search needs Optuna", "tune") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed)
    return optuna.create_study(
        direction="maximize" if higher_is_better else "minimize", sampler=sampler
    )


def _failed() -> Any:
    import optuna

    return optuna.trial.TrialState.FAIL
