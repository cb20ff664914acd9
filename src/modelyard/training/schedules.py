"""What happens at which step, as pure functions: learning rate, evaluations, seeds."""

import math

from modelyard.spec.training import TrainSection

_MASK = 2**64 - 1


def total_steps(epochs: float, samples: int, batch_size: int) -> int:
    """Optimizer steps of a training; at least one."""
    return max(1, math.ceil(epochs * samples / batch_size - 1e-9))


def learning_rate(section: TrainSection, step: int, steps: int) -> float:
    """The rate of step ``step`` (from 0) of ``steps``.

    Warm-up is linear from 0 and reaches the peak at its end (the first step already has a share of
    it, as a step of rate 0 would be lost). Cosine: eq. 5 of Loshchilov & Hutter, *SGDR: Stochastic
    Gradient Descent with Warm Restarts*, ICLR 2017, without restarts, from the peak down to
    ``floor`` of it at the last step.
    """
    peak, schedule = section.optimizer.lr, section.schedule
    warm = math.ceil(schedule.warmup * steps - 1e-9)
    if step < warm:
        return peak * (step + 1) / warm
    if schedule.name == "constant":
        return peak
    after = (step - warm) / max(1, steps - 1 - warm)
    low = peak * schedule.floor
    return low + 0.5 * (peak - low) * (1 + math.cos(math.pi * min(after, 1.0)))


def next_multiple(step: int, every: float, steps: int) -> int:
    """The first step after ``step`` that completes another ``every`` steps; at most ``steps``."""
    count = math.floor(step / every + 1e-9) + 1
    upcoming = math.ceil(count * every - 1e-9)
    return min(steps, max(step + 1, upcoming))


def is_multiple(step: int, every: float, steps: int) -> bool:
    """True where ``step`` is the last one or completes another ``every`` steps."""
    return step >= steps or (step > 0 and next_multiple(step - 1, every, steps) == step)


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for one worker's step: 63 well-mixed bits (SplitMix64; Steele, Lea & Flood, OOPSLA 2014).

    A plain sum would give step 5 of worker 1 the same numbers as step 6 of worker 0.
    """
    return _mixed(_mixed(_mixed(seed) ^ step) ^ rank) >> 1


def _mixed(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
