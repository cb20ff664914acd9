"""Blends of two samples: what the papers say, in bytes and in floats."""

import numpy as np
import pytest

from modelyard.data.mixing import cutmix, mix, mixup, plan_mix
from modelyard.spec.training import AugmentSection


def test_a_plan_is_of_its_step_and_seed() -> None:
    section = AugmentSection(mixup=0.4)
    first, again = plan_mix(section, 7, 5, 64), plan_mix(section, 7, 5, 64)
    np.testing.assert_array_equal(first.partner, again.partner)
    np.testing.assert_array_equal(first.parts, again.parts)
    assert sorted(first.partner.tolist()) == list(range(64))
    for other in (plan_mix(section, 7, 6, 64), plan_mix(section, 8, 5, 64)):
        assert (other.partner != first.partner).any()


def test_shares_follow_the_beta_distribution() -> None:
    """Its variance is 1 / (4 (2 alpha + 1))."""
    for alpha in (0.2, 1.0, 4.0):
        plan = plan_mix(AugmentSection(mixup=alpha), 0, 0, 20_000)
        shares = plan.parts / 256
        assert shares.min() >= 0 and shares.max() <= 1 and abs(shares.mean() - 0.5) < 0.01
        assert abs(shares.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_both_kinds_take_turns() -> None:
    section = AugmentSection(mixup=0.2, cutmix=1.0)
    boxes = [plan_mix(section, 0, step, 4).centre is not None for step in range(200)]
    assert 60 < sum(boxes) < 140
    assert all(plan_mix(AugmentSection(cutmix=1.0), 0, s, 4).centre is not None for s in range(9))
    assert all(plan_mix(AugmentSection(mixup=1.0), 0, s, 4).centre is None for s in range(9))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mixup_is_the_weighted_mean(dtype: type) -> None:
    rng = np.random.default_rng(0)
    own, other = (rng.integers(0, 256, (257, 3, 4, 4)).astype(dtype) for _ in range(2))
    parts = np.arange(257)
    blend = mixup(own, other, parts)
    share = (parts / 256).reshape(-1, 1, 1, 1)
    expected = own.astype(np.float64) * share + other.astype(np.float64) * (1 - share)
    assert blend.dtype == dtype
    assert np.abs(blend - expected).max() <= (0.5 if dtype is np.uint8 else 1e-4)
    np.testing.assert_array_equal(blend[-1], own[-1])
    np.testing.assert_array_equal(blend[0], other[0])


def test_cutmix_pastes_a_box_and_weighs_by_its_area() -> None:
    count, height, width = 300, 12, 16
    own, other = (
        np.zeros((count, 3, height, width), np.uint8),
        np.ones((count, 3, height, width), np.uint8),
    )
    plan = plan_mix(AugmentSection(cutmix=1.0), 0, 0, count)
    assert plan.centre is not None
    blend, weight = cutmix(own, other, plan.parts, plan.centre)
    for picture, share in zip(blend, weight, strict=True):
        assert (picture == picture[0]).all()
        rows, columns = (
            np.flatnonzero(picture[0].any(axis=1)),
            np.flatnonzero(picture[0].any(axis=0)),
        )
        assert picture[0].sum() == len(rows) * len(columns)  # one box
        assert abs(1 - picture[0].mean() - share) < 1e-6
    assert 0.5 < weight.mean() < 0.75  # half, and more for boxes that reach over the edge
    whole, none = np.array([0]), np.array([256])
    middle = np.array([[0.5, 0.5]])
    assert cutmix(own[:1], other[:1], whole, middle)[1].tolist() == [0.0]
    assert cutmix(own[:1], other[:1], none, middle)[1].tolist() == [1.0]


def test_the_weight_of_a_blend_is_the_share_of_the_own_sample() -> None:
    plan = plan_mix(AugmentSection(mixup=1.0), 0, 0, 8)
    own, other = np.full((4, 2), 1.0, np.float32), np.zeros((4, 2), np.float32)
    blend, weight = mix(own, other, plan, np.arange(2, 6))
    np.testing.assert_array_equal(weight, (plan.parts[2:6] / 256).astype(np.float32))
    np.testing.assert_array_equal(blend[:, 0], weight)
