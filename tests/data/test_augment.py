"""What augmentation does to samples, drawn from seed, epoch and sample alone."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from modelyard.data.augment import Augmentation, augment_mistakes
from modelyard.data.draws import sample_keys
from modelyard.spec.signature import (
    BooleanColumn,
    CategoricalColumn,
    ImageInput,
    NaturalInput,
    NumericColumn,
    TableInput,
    TensorInput,
    TextInput,
)
from modelyard.spec.training import AugmentSection

RGB = ImageInput(height=12, width=10, color="rgb", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
GREY = ImageInput(height=12, width=10, color="grey", mean=(0.5,), std=(0.2,))
TABLE = TableInput(
    columns=(
        NumericColumn(name="age", fill=40.0, mean=50.0, std=10.0, indicator=True),
        CategoricalColumn(name="town", categories=("a", "b", "c")),
        BooleanColumn(name="smoker", fill=0.25),
        NumericColumn(name="weight", fill=70.0, mean=70.0, std=5.0),
    )
)
ARRAY = TensorInput(shape=(2, 6, 6), mean=3.0, std=2.0)
TEXT = TextInput(length=5, tokens="bytes")
FLAT = TensorInput(shape=(7,))


def keys(count: int, epoch: int = 0, seed: int = 0) -> NDArray[np.uint64]:
    return sample_keys(seed, np.full(count, epoch), np.arange(count))


def pictures(count: int, spec: ImageInput = RGB) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, *spec.shape), dtype=np.uint8)


def augmented(samples: NDArray[Any], spec: NaturalInput, epoch: int = 0, **asked: Any) -> Any:
    section = AugmentSection(**asked)
    return Augmentation(section, spec).apply(samples.copy(), keys(len(samples), epoch))


def test_flip_mirrors_about_as_many_as_asked() -> None:
    before = pictures(400)
    after = augmented(before, RGB, flip=0.25)
    mirrored = (after == before[..., ::-1]).all(axis=(1, 2, 3))
    same = (after == before).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all() and 60 < mirrored.sum() < 140
    assert (augmented(before, RGB, flip=1.0) == before[..., ::-1]).all()


def test_crop_is_a_window_of_the_framed_picture() -> None:
    before = pictures(200)
    after = augmented(before, RGB, crop=3)
    border = np.rint(np.array(RGB.mean) * 255).astype(np.uint8).reshape(3, 1, 1)
    seen = set()
    for old, new in zip(before, after, strict=True):
        framed = np.broadcast_to(border, (3, 18, 16)).copy()
        framed[:, 3:-3, 3:-3] = old
        places = [
            (y, x)
            for y in range(7)
            for x in range(7)
            if (framed[:, y : y + 12, x : x + 10] == new).all()
        ]
        assert len(places) == 1
        seen |= set(places)
    assert len(seen) > 40  # of 49
    assert after.dtype == np.uint8 and after.flags.c_contiguous


def test_color_does_what_its_three_formulas_say() -> None:
    """Against the formulas one after the other, in float64, for each picture by itself."""
    before = pictures(50)
    after = augmented(before, RGB, color=0.4)
    from modelyard.data.draws import uniform

    factors = 1 + 0.4 * (2 * uniform(keys(50), 3, 3) - 1)
    weights = np.array([0.299, 0.587, 0.114])
    for old, new, (bright, contrast, saturation) in zip(before, after, factors, strict=True):
        x = bright * old.astype(np.float64)
        mean = (x * weights.reshape(3, 1, 1)).sum(axis=0).mean()
        x = contrast * x + (1 - contrast) * mean
        x = saturation * x + (1 - saturation) * (x * weights.reshape(3, 1, 1)).sum(axis=0)
        assert np.abs(np.clip(x, 0, 255) - new).max() <= 0.51
    assert (augmented(before, RGB, color=1e-9) == before).all()


def test_color_leaves_grey_pictures_grey() -> None:
    before = pictures(20, GREY)
    after = augmented(before, GREY, color=0.5)
    assert after.shape == before.shape and (after != before).any()
    equal = np.repeat(before, 3, axis=1)
    tinted = augmented(equal, RGB, color=0.5)
    assert np.ptp(tinted.astype(int), axis=1).max() <= 1


def test_noise_is_for_numbers_only() -> None:
    before = np.zeros((500, *TABLE.shape), np.float32)
    after = augmented(before, TABLE, noise=0.1)
    changed = (after != before).any(axis=0)
    assert changed.tolist() == [True, False, False, False, False, False, True]
    assert abs(after[:, 0].std() - 0.1) < 0.02 and abs(after[:, 0].mean()) < 0.02
    array = augmented(np.zeros((50, *ARRAY.shape), np.float32), ARRAY, noise=0.5)
    assert abs(array.std() - 0.5) < 0.02


def test_mask_makes_a_whole_column_missing() -> None:
    """As the preparation writes a missing cell: filled and indicated, no word, the mean truth."""
    before = np.full((2000, *TABLE.shape), 9.0, np.float32)
    after = augmented(before, TABLE, mask=0.2)
    missing = {(0, 1): (-1.0, 1.0), (2, 3, 4): (0, 0, 0), (5,): (0.25,), (6,): (0.0,)}
    for features, values in missing.items():
        block = after[:, list(features)]
        hidden = (block == np.array(values, np.float32)).all(axis=1)
        assert ((block == 9).all(axis=1) ^ hidden).all() and abs(hidden.mean() - 0.2) < 0.04
    array = augmented(np.ones((100, *ARRAY.shape), np.float32), ARRAY, mask=0.5)
    assert abs((array == 0).mean() - 0.5) < 0.02


def test_arrays_are_framed_with_their_mean() -> None:
    after = augmented(np.ones((50, *ARRAY.shape), np.float32), ARRAY, crop=2, flip=0.5)
    assert set(np.unique(after).tolist()) == {0.0, 1.0} and after.dtype == np.float32


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        (RGB, {"flip": 0.5}),
        (RGB, {"crop": 2}),
        (RGB, {"color": 0.3}),
        (RGB, {"flip": 0.5, "crop": 2, "color": 0.3}),
        (TABLE, {"noise": 0.3, "mask": 0.2}),
        (FLAT, {"noise": 0.3, "mask": 0.2}),
        (ARRAY, {"crop": 1, "flip": 0.5, "noise": 0.1}),
    ],
)
def test_it_is_the_same_for_a_sample_whoever_it_is_with(
    spec: NaturalInput, asked: dict[str, Any]
) -> None:
    count = 37
    rng = np.random.default_rng(1)
    if isinstance(spec, ImageInput):
        samples: Any = pictures(count, spec)
    else:
        samples = rng.normal(size=(count, *spec.shape)).astype(np.float32)
    made = Augmentation(AugmentSection(**asked), spec)
    all_keys = keys(count)
    whole = made.apply(samples.copy(), all_keys)
    for size in (1, 2, 5, 8):
        for part in np.array_split(rng.permutation(count), size):
            np.testing.assert_array_equal(made.apply(samples[part], all_keys[part]), whole[part])
    other = made.apply(samples.copy(), keys(count, epoch=1))
    assert (other != whole).reshape(count, -1).any(axis=1).mean() > 0.3
    assert (made.apply(samples.copy(), keys(count, seed=1)) != whole).any()


def test_turning_one_on_leaves_the_others_as_they_were() -> None:
    before = pictures(60)
    flipped = augmented(before, RGB, flip=0.5)
    both = augmented(before, RGB, flip=0.5, color=1e-9)
    np.testing.assert_array_equal(flipped, both)


def test_samples_that_may_not_be_written_to_are_copied() -> None:
    before = pictures(8)
    kept = before.copy()
    before.setflags(write=False)
    after = Augmentation(AugmentSection(flip=1.0), RGB).apply(before, keys(8))
    assert (after == kept[..., ::-1]).all() and (before == kept).all()


def test_an_empty_share_stays_empty() -> None:
    section = AugmentSection(flip=0.5, crop=2, color=0.2)
    assert Augmentation(section, RGB).apply(pictures(0), keys(0)).shape == (0, *RGB.shape)


@pytest.mark.parametrize(
    ("asked", "spec", "classes", "field", "expected"),
    [
        ({"flip": 0.5}, TABLE, True, "flip", "images"),
        ({"crop": 2}, FLAT, True, "crop", "images"),
        ({"crop": 10}, RGB, True, "crop", "less than 10"),
        ({"color": 0.5}, ARRAY, True, "color", "images"),
        ({"noise": 0.5}, RGB, True, "noise", "tables"),
        ({"mask": 0.5}, GREY, True, "mask", "tables"),
        ({"mixup": 0.2}, TABLE, True, "mixup", "images"),
        ({"cutmix": 1.0}, FLAT, True, "cutmix", "images"),
        ({"mixup": 0.2}, TEXT, True, "mixup", "images"),
        ({"noise": 0.2}, TEXT, True, "noise", "tables"),
        ({"mixup": 0.2}, RGB, False, "mixup", "0"),
        ({"cutmix": 1.0}, RGB, False, "cutmix", "0"),
    ],
)
def test_what_cannot_be_done_is_refused(
    asked: dict[str, Any], spec: NaturalInput, classes: bool, field: str, expected: str
) -> None:
    (mistake,) = augment_mistakes(AugmentSection(**asked), spec, classes=classes)
    assert mistake.where == f"train.augment.{field}" and expected in mistake.expected


def test_what_can_be_done_is_not() -> None:
    for spec in (RGB, GREY):
        asked = AugmentSection(flip=0.5, crop=2, color=0.2, mixup=0.2, cutmix=1.0)
        assert list(augment_mistakes(asked, spec, classes=True)) == []
    for spec in (TABLE, FLAT, ARRAY):
        asked = AugmentSection(noise=0.1, mask=0.1)
        assert list(augment_mistakes(asked, spec, classes=False)) == []
