"""From the project's words to what a backend is asked for: the optimizer's settings."""

from modelyard.backends.base import Backend, Execution, Lora, OptimizerSettings, WeightGroup
from modelyard.spec.errors import TrainingError
from modelyard.spec.optimizers import NEUTRAL, OPTIMIZERS
from modelyard.spec.start_weights import StartWeights
from modelyard.spec.training import TrainSection


def optimizer_settings(
    section: TrainSection, execution: Execution, start: StartWeights | None = None
) -> OptimizerSettings:
    """What ``[train.optimizer]`` says; what it leaves open is the optimizer's own."""
    chosen = section.optimizer
    decay = chosen.weight_decay
    given = {field: getattr(chosen, field) for field in NEUTRAL}
    return OptimizerSettings(
        name=chosen.name,
        weight_decay=OPTIMIZERS[chosen.name].weight_decay if decay is None else decay,
        freeze=section.freeze,
        no_decay=chosen.no_decay,
        groups=tuple(
            WeightGroup(match=g.match, lr_scale=g.lr_scale, weight_decay=g.weight_decay)
            for g in chosen.groups
        ),
        layer_decay=chosen.layer_decay,
        execution=execution,
        lora=adapters_of(section, start),
        ema=section.ema,
        **{field: value for field, value in given.items() if value is not None},
    )


def check_known(backend: Backend, section: TrainSection) -> None:
    """Raises TrainingError naming the fields that ``backend``, of another package perhaps, would pass over."""
    chosen, plain = section.optimizer, TrainSection().optimizer
    by_name = {
        "train.freeze": section.freeze,
        "train.clip_value": section.clip_value,
        "train.optimizer.no_decay": chosen.no_decay,
        "train.optimizer.groups": chosen.groups,
        "train.optimizer.layer_decay": chosen.layer_decay != plain.layer_decay,
    }
    missing = [field for field, value in by_name.items() if value and not backend.treats_by_name]
    missing += ["train.ema"] if section.ema and not backend.averages else []
    missing += ["train.lora"] if section.lora and not backend.adapts else []
    recompute = section.gradient_checkpointing and not backend.recomputes
    missing += ["train.gradient_checkpointing"] if recompute else []
    if missing:
        raise TrainingError(
            f"the {backend.name} backend has no {' and no '.join(missing)}", "leave it out"
        )


def adapters_of(section: TrainSection, start: StartWeights | None) -> Lora | None:
    """As the project file says; what begins anew has nothing to adapt, and is trained whole."""
    if section.lora is None:
        return None
    fresh = start.fresh if start else ()
    return Lora(
        rank=section.lora.rank,
        alpha=section.lora.alpha,
        match=tuple(section.lora.match),
        also=(*section.lora.also, *fresh),
    )
