"""How long a training will still take: steps, evaluations and checkpoints, each at its own pace."""

import math

import msgspec


class Pace(msgspec.Struct):
    """Measured by worker 0; all times are seconds."""

    steps: int = 0
    step_seconds: float = 0.0
    evaluations: int = 0
    evaluation_seconds: float = 0.0
    other_seconds: float = 0.0
    """Checkpoints and whatever else is not stepping; spread over the steps."""

    def stepped(self, steps: int, seconds: float) -> None:
        self.steps += steps
        self.step_seconds += seconds

    def evaluated(self, seconds: float) -> None:
        self.evaluations += 1
        self.evaluation_seconds += seconds

    def waited(self, seconds: float) -> None:
        self.other_seconds += seconds

    def left(self, step: int, steps: int, every: float) -> float:
        """From after ``step`` to the end at ``steps``, with an evaluation each ``every`` steps.

        At the end come two more looks, at validation and test, about an evaluation each. Before the
        first evaluation nothing is known of their time, and nothing is added.
        """
        if not self.steps:
            return 0.0
        each = (self.step_seconds + self.other_seconds) / self.steps
        evaluation = self.evaluation_seconds / max(self.evaluations, 1)
        coming = math.ceil(steps / every - 1e-9) - math.floor(step / every + 1e-9)
        return (steps - step) * each + (max(coming, 0) + 2) * evaluation
