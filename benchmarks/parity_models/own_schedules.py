"""Each framework's own schedules of the learning rate, set to the same curve where they can be: forty steps from a peak of 0.1."""

from collections.abc import Callable, Iterator
from typing import Any

from modelyard.spec.training import TrainSection
from modelyard.training.checkpoints import Progress
from modelyard.training.judgement import after_plateau
from modelyard.training.schedules import learning_rate

STEPS, PEAK, FLOOR = 40, 0.1, 0.1
LOW = PEAK * FLOOR
LAST = STEPS - 1
ASKED: dict[str, dict[str, Any]] = {
    "constant": {"name": "constant", "warmup": 0.0},
    "linear": {"name": "linear", "warmup": 0.0, "floor": FLOOR},
    "cosine": {"name": "cosine", "warmup": 0.0, "floor": FLOOR},
    "cosine, warm-up": {"name": "cosine", "warmup": 0.25, "floor": FLOOR},
    "step": {"name": "step", "warmup": 0.0, "every": 10, "gamma": 0.5},
    "exponential": {"name": "exponential", "warmup": 0.0, "gamma": 0.9},
    "one-cycle": {"name": "one-cycle", "warmup": 0.3, "start": 0.04, "floor": 0.001},
    "plateau": {"name": "plateau", "warmup": 0.0, "factor": 0.5, "patience": 3, "min_delta": 0.01},
}
"""``[train.schedule]`` of each; an epoch is one step."""
LOSSES = [
    max(1.0 - 0.05 * step, 0.6) + 0.004 * (step % 3) - 0.2 * (step > 25) for step in range(STEPS)
]
"""Measured after each step, for the plateau: falls, stays, falls once more, stays."""
Rates = list[float]


def gaps(name: str) -> Iterator[tuple[str, float | None]]:
    """Of each schedule, the largest difference of a rate from the framework's own, relative; None where it has none."""
    own = {"pytorch": _torch, "keras": _keras, "jax": _optax}[name]()
    for title, asked in ASKED.items():
        section = TrainSection.model_validate({"optimizer": {"lr": PEAK}, "schedule": asked})
        rates = _ours(section)
        make = own.get(title)
        theirs = rates if make is None else make()
        gap = max(abs(a - b) / b for a, b in zip(rates, theirs, strict=True))
        yield title, None if make is None else gap


def _ours(section: TrainSection) -> Rates:
    progress, rates = Progress(), []
    for step, loss in enumerate(LOSSES):
        rates.append(learning_rate(section, step, STEPS, reductions=progress.reductions))
        progress = after_plateau(section, progress, loss, higher_is_better=False)
    return rates


def _torch() -> dict[str, Callable[[], Rates]]:
    import torch
    from torch.optim import lr_scheduler as kinds

    def run(make: Callable[[Any], Any]) -> Callable[[], Rates]:
        def rates() -> Rates:
            optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
            scheduler, found = make(optimizer), []
            for _ in range(STEPS):
                found.append(float(optimizer.param_groups[0]["lr"]))
                optimizer.step()
                scheduler.step()
            return found

        return rates

    def warmed(optimizer: Any) -> Any:
        rise = kinds.LinearLR(optimizer, 0.1, 1.0, 9)
        fall = kinds.CosineAnnealingLR(optimizer, LAST - 10, LOW)
        return kinds.SequentialLR(optimizer, [rise, fall], [10])

    def plateau() -> Rates:
        """Where ours counts evaluations up to its patience, PyTorch counts those beyond it."""
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
        scheduler = kinds.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=2, threshold=0.01, threshold_mode="abs", eps=0.0
        )
        found = []
        for loss in LOSSES:
            found.append(float(optimizer.param_groups[0]["lr"]))
            scheduler.step(loss)
        return found

    return {
        "plateau": plateau,
        "constant": run(lambda o: kinds.ConstantLR(o, 1.0)),
        "linear": run(lambda o: kinds.LinearLR(o, 1.0, FLOOR, LAST)),
        "cosine": run(lambda o: kinds.CosineAnnealingLR(o, LAST, LOW)),
        "cosine, warm-up": run(warmed),
        "step": run(lambda o: kinds.StepLR(o, 10, 0.5)),
        "exponential": run(lambda o: kinds.ExponentialLR(o, 0.9)),
        "one-cycle": run(
            lambda o: kinds.OneCycleLR(
                o, PEAK, STEPS, pct_start=0.3, div_factor=25, final_div_factor=40
            )
        ),
    }


def _keras() -> dict[str, Callable[[], Rates]]:
    """Its warm-up goes over into the cosine one step earlier than ours, and it has no one-cycle."""
    import keras

    kinds = keras.optimizers.schedules

    def run(schedule: Any) -> Callable[[], Rates]:
        return lambda: [float(schedule(step)) for step in range(STEPS)]

    def plateau() -> Rates:
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(optimizer=keras.optimizers.SGD(PEAK), loss="mse")
        callback = keras.callbacks.ReduceLROnPlateau(
            monitor="loss", factor=0.5, patience=3, min_delta=0.01, mode="min"
        )
        callback.set_model(model)
        callback.on_train_begin()
        found = []
        for step, loss in enumerate(LOSSES):
            found.append(float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)))
            callback.on_epoch_end(step, {"loss": loss})
        return found

    return {
        "plateau": plateau,
        "linear": run(kinds.PolynomialDecay(PEAK, LAST, LOW)),
        "cosine": run(kinds.CosineDecay(PEAK, LAST, alpha=FLOOR)),
        "step": run(kinds.ExponentialDecay(PEAK, 10, 0.5, staircase=True)),
        "exponential": run(kinds.ExponentialDecay(PEAK, 1, 0.9)),
    }


def _optax() -> dict[str, Callable[[], Rates]]:
    """Its one-cycle has its peak at another step."""
    import optax
    import optax.contrib

    def run(schedule: Any) -> Callable[[], Rates]:
        return lambda: [float(schedule(step)) for step in range(STEPS)]

    def plateau() -> Rates:
        transform = optax.contrib.reduce_on_plateau(factor=0.5, patience=3, rtol=0.0, atol=0.01)
        state, found = transform.init(0.0), []
        for loss in LOSSES:
            found.append(PEAK * float(state.scale))
            _, state = transform.update(0.0, state, value=loss)
        return found

    rise = optax.linear_schedule(PEAK / 10, PEAK, 9)
    fall = optax.cosine_decay_schedule(PEAK, LAST - 10, FLOOR)
    return {
        "plateau": plateau,
        "constant": run(optax.constant_schedule(PEAK)),
        "linear": run(optax.linear_schedule(PEAK, LOW, LAST)),
        "cosine": run(optax.cosine_decay_schedule(PEAK, LAST, FLOOR)),
        "cosine, warm-up": run(optax.join_schedules([rise, fall], [10])),
        "step": run(optax.exponential_decay(PEAK, 10, 0.5, staircase=True)),
        "exponential": run(optax.exponential_decay(PEAK, 1, 0.9)),
    }
