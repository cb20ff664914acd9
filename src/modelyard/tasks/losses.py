"""The formulas of the losses, written once over ``Ops`` for every framework.

All take log-probabilities or errors and give one loss a sample, in nats or in the target's unit.
"""

from collections.abc import Sequence

from modelyard.tasks.base import Ops, Tensor

_LARGEST = 1 - 2.0**-24
"""The largest float32 below 1: with it the slope of (1 - p)^gamma stays finite where p rounds to 1."""


def focused(ops: Ops, log_probabilities: Tensor, gamma: float) -> Tensor:
    """-(1 - p)^gamma log p, elementwise: the focal loss (Lin et al. 2017, *Focal Loss for Dense Object Detection*, eq. 4).

    With gamma = 0 it is -log p.
    """
    if not gamma:
        return -log_probabilities
    rest = 1 - ops.minimum(ops.exp(log_probabilities), _LARGEST)
    return -ops.power(rest, gamma) * log_probabilities


def smoothed(true: Tensor, mean: Tensor, smoothing: float) -> Tensor:
    """(1 - e) l_y + e mean_k l_k: the loss under a label of which the share e lies evenly on all classes.

    Szegedy et al. 2016, *Rethinking the Inception Architecture*, section 7. ``true`` (n,) are the
    losses of the true classes, ``mean`` (n,) those of all classes in the mean.
    """
    return (1 - smoothing) * true + smoothing * mean


def weighted(ops: Ops, losses: Tensor, weights: Sequence[float], targets: Tensor) -> Tensor:
    """Each loss times the factor of its class.

    Their sum is divided by the number of samples, not by that of the weights: a batch's loss is then
    a sum over its samples, whoever holds them, and its expectation does not depend on which classes
    happen to meet in a batch.
    """
    return losses * ops.lookup(weights, targets)


def huber(ops: Ops, errors: Tensor, delta: float) -> Tensor:
    """e^2 / 2 up to ``delta``, delta (\\|e\\| - delta / 2) beyond (Huber 1964, *Robust Estimation of a Location Parameter*)."""
    size = ops.absolute(errors)
    near = ops.minimum(size, delta)
    return near * (size - 0.5 * near)
