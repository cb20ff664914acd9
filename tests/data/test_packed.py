"""Files kept as they came: the same datasets and batches as with pixels, decoded beside the steps."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from modelyard.data.cursor import Cursor
from modelyard.data.dataset import Split, open_split, prepare
from modelyard.data.feed import AHEAD, BatchMaker, Feed
from modelyard.data.packed import PACK, PLACES, PackedPictures
from modelyard.spec.errors import DataError, StoreError
from modelyard.spec.project import Project
from modelyard.spec.training import AugmentSection
from modelyard.store import Store

MIXED = AugmentSection(flip=0.5, crop=2, mixup=0.4)


@pytest.fixture
def digits(tmp_path: Path, project) -> dict[str, Project]:
    """300 of scikit-learn's digits as PNG files, by what is to be kept of them."""
    images, labels = load_digits(return_X_y=True)
    for number, (pixels, label) in enumerate(zip(images[:300], labels[:300], strict=True)):
        folder = tmp_path / "digits" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((pixels.reshape(8, 8) * 15.9).astype(np.uint8))
        picture.save(folder / f"{number}.png")
    return {
        keep: project(source="images", path="digits", size=[8, 8], color="grey", keep=keep)
        for keep in ("pixels", "files")
    }


@pytest.fixture
def both(digits: dict[str, Project], store: Store) -> Iterator[dict[str, Split]]:
    splits = {keep: open_split(prepare(digits[keep], store), "train") for keep in digits}
    yield splits
    pictures(splits["files"]).close()


def pictures(split: Split) -> PackedPictures:
    assert isinstance(split.inputs, PackedPictures)
    return split.inputs


def test_the_dataset_is_the_same_but_for_its_form(digits: dict[str, Project], store: Store) -> None:
    pixels, files = (prepare(digits[keep], store) for keep in ("pixels", "files"))
    assert files.input == pixels.input and files.splits == pixels.splits
    assert files.quality == pixels.quality
    for name in ("targets.npy", "train.npy", "validation.npy", "test.npy", "profile.json"):
        one, two = (Path(made.folder, name).read_bytes() for made in (pixels, files))
        assert one == two, name
    assert Path(files.folder, PACK).exists() and not Path(files.folder, "inputs.npy").exists()
    for name in ("train", "validation", "test"):
        one, two = open_split(pixels, name), open_split(files, name)
        everything = np.arange(len(one))
        for left, right in zip(one.batch(everything), two.batch(everything), strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("augment", [AugmentSection(), MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize("ahead", [0, 2])
def test_batches_are_the_same_in_any_order_of_asking(
    both: dict[str, Split], augment: AugmentSection, ahead: int
) -> None:
    for rank in range(2):
        pixels, files = (
            BatchMaker(split, Cursor(len(split), 16, 3), rank=rank, size=2, augment=augment)
            for split in both.values()
        )
        with Feed(files, ahead=ahead) as feed:
            for step in (*range(12), 40, 41, 3, *range(4, 9)):
                one, two = pixels.make(step), feed.take(step)
                np.testing.assert_array_equal(one.inputs, two.inputs)
                np.testing.assert_array_equal(one.targets, two.targets)


def test_no_more_is_begun_than_the_next_batches(both: dict[str, Split]) -> None:
    maker = BatchMaker(both["files"], Cursor(len(both["files"]), 16, 3))
    for step in (*range(5), 30, 31):
        maker.make(step)
        assert len(pictures(both["files"])._begun) == AHEAD


def test_a_killed_decoder_is_replaced(both: dict[str, Split]) -> None:
    split = both["files"]
    everything = np.arange(len(split))
    expected, _ = both["pixels"].stored(everything)
    for _ in range(3):
        for process in pictures(split)._decoders.processes:
            os.kill(process, signal.SIGKILL)
        np.testing.assert_array_equal(split.stored(everything)[0], expected)
    pictures(split).close()
    np.testing.assert_array_equal(split.stored(everything)[0], expected)


def test_broken_files_are_named_and_left_out(
    digits: dict[str, Project], store: Store, tmp_path: Path, project
) -> None:
    (tmp_path / "digits" / "3" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1 of 301 .*3/broken\.png: not a readable image"):
        prepare(digits["files"], store)
    mended = project(
        source="images", path="digits", size=[8, 8], color="grey", keep="files", max_unreadable=0.01
    )
    dataset = prepare(mended, store)
    assert dataset.samples == 300
    assert any("3/broken.png" in one for found in dataset.quality for one in found.examples)


def test_a_pack_that_is_cut_short_is_made_again(digits: dict[str, Project], store: Store) -> None:
    dataset = prepare(digits["files"], store)
    pack = Path(dataset.folder, PACK)
    whole = pack.read_bytes()
    os.truncate(pack, len(whole) - 1)
    with pytest.raises(StoreError, match="is damaged: it has"):
        open_split(dataset, "train")
    prepare(digits["files"], store)
    assert pack.read_bytes() == whole


def test_a_pack_with_other_bytes_is_said_to_be_damaged(
    digits: dict[str, Project], store: Store
) -> None:
    dataset = prepare(digits["files"], store)
    first, length = np.load(Path(dataset.folder, PLACES))[5].tolist()
    with Path(dataset.folder, PACK).open("r+b") as file:
        file.seek(first)
        file.write(bytes(length))
    split = open_split(dataset, "train")
    with pytest.raises(StoreError, match="sample 5 is not a readable image"):
        split.stored_inputs(np.arange(20))
