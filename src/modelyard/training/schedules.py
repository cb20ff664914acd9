"""What happens at which step, as pure functions: learning rate, evaluations, seeds."""

import math

from modelyard.spec.training import ScheduleSection, TrainSection

_MASK = 2**64 - 1


def total_steps(epochs: float, samples: int, batch_size: int) -> int:
    """Optimizer steps of a training; at least one."""
    return max(1, math.ceil(epochs * samples / batch_size - 1e-9))


def learning_rate(
    section: TrainSection,
    step: int,
    steps: int,
    *,
    steps_per_epoch: float = 1.0,
    reductions: int = 0,
) -> float:
    """The rate of step ``step`` (from 0) of ``steps``.

    Every schedule begins with a rise that reaches the peak with the last step of the warm-up; it is
    linear from 0 (the first step already has a share of the peak, as a step of rate 0 would be
    lost), but for one-cycle. ``reductions`` are those of a plateau so far (``judgement.py``).
    """
    peak, schedule = section.optimizer.lr, section.schedule
    warm, low = warm_steps(section, steps), section.optimizer.lr * schedule.floor
    reduced = schedule.said("factor") ** reductions if schedule.name == "plateau" else 1.0
    if schedule.name == "one-cycle":
        return _one_cycle(step, steps, warm, schedule.said("start") * peak, peak, low)
    if step < warm:
        return float(peak * (step + 1) / warm * reduced)
    if schedule.name == "constant":
        return peak
    if schedule.name == "plateau":
        return float(max(low, peak * reduced))
    if schedule.name == "step":
        drops = _drops(schedule, step / steps_per_epoch)
        return float(max(low, peak * schedule.said("gamma") ** drops))
    if schedule.name == "exponential":
        epochs = (step - warm) / steps_per_epoch
        return float(max(low, peak * schedule.said("gamma") ** epochs))
    after = min(1.0, (step - warm) / max(1, steps - 1 - warm))
    return _straight(peak, low, after) if schedule.name == "linear" else _wave(peak, low, after)


def warm_steps(section: TrainSection, steps: int) -> int:
    """How many of the first steps rise."""
    share: float = section.schedule.said("warmup")
    return math.ceil(share * steps - 1e-9)


def _straight(first: float, last: float, share: float) -> float:
    """Linear, as for BERT: Devlin et al., NAACL 2019, appendix A.2."""
    return first + (last - first) * share


def _wave(first: float, last: float, share: float) -> float:
    """Half a cosine: eq. 5 of Loshchilov & Hutter, SGDR, ICLR 2017, without restarts."""
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * share))


def _one_cycle(step: int, steps: int, warm: int, first: float, peak: float, low: float) -> float:
    """Up to the peak and down below the first rate: Smith & Topin, Super-Convergence, SPIE 2019.

    In half waves, as the paper's followers found better than its straight lines (Howard & Gugger,
    fastai, 2020). Momentum stays as it is.
    """
    top = max(0, warm - 1)
    if step < top:
        return _wave(first, peak, step / top)
    return _wave(peak, low, (step - top) / max(1, steps - 1 - top))


def _drops(schedule: ScheduleSection, epochs: float) -> int:
    """How often the rate of He et al., CVPR 2016, section 3.4, has dropped after ``epochs``."""
    if schedule.every is not None:
        return math.floor(epochs / schedule.every + 1e-9)
    return sum(epochs + 1e-9 >= milestone for milestone in schedule.milestones)


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
