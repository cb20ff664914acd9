"""From the project's words to what a backend is asked for: the optimizer's settings."""

from modelyard.backends.base import Execution, OptimizerSettings
from modelyard.spec.optimizers import NEUTRAL, OPTIMIZERS
from modelyard.spec.training import TrainSection


def optimizer_settings(section: TrainSection, execution: Execution) -> OptimizerSettings:
    """What ``[train.optimizer]`` says; what it leaves open is the optimizer's own."""
    chosen = section.optimizer
    decay = chosen.weight_decay
    given = {field: getattr(chosen, field) for field in NEUTRAL}
    return OptimizerSettings(
        name=chosen.name,
        weight_decay=OPTIMIZERS[chosen.name].weight_decay if decay is None else decay,
        execution=execution,
        **{field: value for field, value in given.items() if value is not None},
    )
