"""Preparation end to end: real data in, whole arrays out, whatever interrupts it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_breast_cancer, load_digits

from modelyard.data.dataset import dataset_id, natural_samples, open_split, prepare
from modelyard.data.preprocess import encode
from modelyard.data.profile import ImageProfile, NumericProfile, Profile
from modelyard.data.split import SPLITS
from modelyard.spec.errors import DataError, StoreError, UsageError
from modelyard.spec.project import Project
from modelyard.spec.records import Dataset
from modelyard.store import Store, open_store


@pytest.fixture
def digits(tmp_path: Path, project) -> Project:
    """600 of scikit-learn's digits as PNG files."""
    images, labels = load_digits(return_X_y=True)
    for number, (pixels, label) in enumerate(zip(images[:600], labels[:600], strict=True)):
        folder = tmp_path / "digits" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels.reshape(8, 8) * 15.9).astype(np.uint8)).save(
            folder / f"{number}.png"
        )
    return project(source="images", path="digits", size=[8, 8], color="grey")


@pytest.fixture
def cancer(tmp_path: Path, project) -> Project:
    """scikit-learn's breast-cancer table as a CSV file."""
    data = load_breast_cancer()
    header = [*data.feature_names, "diagnosis"]
    rows = [
        [*map(repr, map(float, row)), data.target_names[target]]
        for row, target in zip(data.data, data.target, strict=True)
    ]
    (tmp_path / "cancer.csv").write_text("\n".join(",".join(line) for line in [header, *rows]))
    return project(source="csv", path="cancer.csv", target="diagnosis")


def everything(dataset: Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    part = open_split(dataset, name)
    return part.batch(np.arange(len(part)))


def test_images_are_normalised_on_the_training_split(digits: Project, store: Store) -> None:
    dataset = prepare(digits, store)
    assert dataset.samples == 600 and sum(dataset.splits.values()) == 600
    assert dataset.task.classes == tuple("0123456789")
    inputs, targets = everything(dataset, "train")
    assert inputs.shape == (dataset.splits["train"], 1, 8, 8) and inputs.dtype == np.float32
    assert abs(inputs.mean()) < 1e-4 and abs(inputs.std() - 1) < 1e-4
    assert targets.dtype == np.int64 and set(targets.tolist()) == set(range(10))
    profile = Profile.from_json((Path(dataset.folder) / "profile.json").read_bytes())
    assert isinstance(profile.features[0], ImageProfile)
    assert profile.features[0].mean == dataset.input.mean
    assert profile.samples == profile.target.count == dataset.splits["train"]


def test_arrays_hold_what_the_files_hold(digits: Project, store: Store) -> None:
    """Every sample of every split, against its file, encoded as the service does it."""
    dataset = prepare(digits, store)
    files: dict[bytes, str] = {}
    for file in sorted((digits.root / "digits").rglob("*.png")):
        files[encode(dataset.input, [file.read_bytes()]).tobytes()] = file.parent.name
    seen = 0
    for name in SPLITS:
        for sample, target in zip(*everything(dataset, name), strict=True):
            assert files[sample.tobytes()] == dataset.task.classes[target]
            seen += 1
    assert seen == 600


def test_a_table_is_fitted_on_the_training_split_only(cancer: Project, store: Store) -> None:
    dataset = prepare(cancer, store)
    inputs, _ = everything(dataset, "train")
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std(axis=0), 1, atol=1e-5)
    test, _ = everything(dataset, "test")
    assert np.abs(test.mean(axis=0)).max() > 1e-3
    assert dataset.task.classes == ("benign", "malignant")
    profile = Profile.from_json((Path(dataset.folder) / "profile.json").read_bytes())
    assert len(profile.features) == 30
    assert all(isinstance(feature, NumericProfile) for feature in profile.features)


def test_natural_samples_encode_to_the_test_split(
    cancer: Project, digits: Project, people: Path, project, store: Store
) -> None:
    mixed = project(source="csv", path=people.name, target="ill")
    for asked in (cancer, digits, mixed):
        dataset = prepare(asked, store)
        inputs, targets = everything(dataset, "test")
        samples = natural_samples(dataset)
        assert len(samples) == 8
        for number, (file, item, truth) in enumerate(samples):
            assert Path(file).stem == str(number)
            matches = (inputs == encode(dataset.input, [item])).reshape(len(inputs), -1).all(axis=1)
            assert truth in {dataset.task.classes[target] for target in targets[matches]}


def test_gaps_words_and_truths(people: Path, project, store: Store) -> None:
    dataset = prepare(project(source="csv", path="people.csv", target="ill"), store)
    age, smoker, town, height = dataset.input.columns
    assert age.indicator and not height.indicator
    assert town.categories == ("Gera", "Jena", "Weimar") and smoker.name == "smoker"
    assert dataset.input.shape == (7,)
    assert [f.kind for f in dataset.quality if f.kind == "missing"] == ["missing"] * 2


def test_tensors_from_python(tmp_path: Path, project, store: Store) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def load():\n"
        "    random = np.random.default_rng(0)\n"
        "    return random.normal(5, 3, (50, 2, 4)), random.normal(size=50)\n"
    )
    asked = project(source="mine:load", task="regression")
    dataset = prepare(asked, store)
    inputs, targets = everything(dataset, "train")
    assert inputs.shape[1:] == (2, 4) and targets.dtype == np.float32
    assert abs(inputs.mean()) < 1e-5 and abs(inputs.std() - 1) < 1e-5
    assert len(dataset.code) == 16
    file, item, _ = natural_samples(dataset)[0]
    assert file == "0.json"
    assert (everything(dataset, "test")[0] == encode(dataset.input, [item])).all(axis=(1, 2)).any()


def test_the_same_content_is_never_in_two_splits(people: Path, project, store: Store) -> None:
    lines = people.read_text().splitlines()
    people.write_text("\n".join([*lines, *lines[1:], *lines[1:20]]) + "\n")
    dataset = prepare(project(source="csv", path="people.csv", target="ill"), store)
    contents = [{row.tobytes() for row in everything(dataset, name)[0]} for name in SPLITS]
    assert not (contents[0] & contents[1] or contents[0] & contents[2] or contents[1] & contents[2])
    findings = {finding.kind: finding for finding in dataset.quality}
    assert "79 samples repeat" in findings["duplicate"].message
    assert "line 2 = line 62 = line 122" in findings["duplicate"].examples
    assert findings["leak"].severity == "note"


def test_raw_values_that_scaling_makes_equal_do_not_cross_splits(
    tmp_path: Path, project, store: Store
) -> None:
    """Apart by 1e-12 in the file, equal in float32."""
    rows = [f"{i % 20 + (i // 20) * 1e-12!r},{i % 2}" for i in range(400)]
    (tmp_path / "near.csv").write_text("x,label\n" + "\n".join(rows))
    dataset = prepare(project(source="csv", path="near.csv"), store)
    contents = [set(everything(dataset, name)[0].ravel().tolist()) for name in SPLITS]
    assert not (contents[0] & contents[1] or contents[0] & contents[2] or contents[1] & contents[2])
    assert next(f for f in dataset.quality if f.kind == "leak").severity == "note"


PART = """
import sys
from pathlib import Path
import numpy as np
from modelyard.data.cursor import Cursor
from modelyard.data.dataset import open_split
from modelyard.spec.records import Dataset

dataset = Dataset.from_json((Path(sys.argv[1]) / "dataset.json").read_bytes())
split = open_split(dataset, "train")
rows = np.arange(0, len(split) // 8)  # an eighth, as a worker of eight takes of a batch in order
assert split.stored(rows)[0].any()
lines = Path("/proc/self/smaps").read_text().splitlines()
at = next(i for i, line in enumerate(lines) if line.endswith("inputs.npy"))
size, resident = (next(int(l.split()[1]) for l in lines[at:] if l.startswith(f"{w}:")) for w in ("Size", "Rss"))
print(size, resident)
"""


def test_a_worker_reads_only_its_rows(tmp_path: Path, project, store: Store) -> None:
    """The arrays are mapped, not read: of 32 MB an eighth comes into the process's memory."""
    x = np.random.default_rng(0).normal(size=(8000, 1024)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x, label=np.arange(8000) % 2)
    dataset = prepare(
        project(source="npz", path="a.npz", split={"test": 0, "validation": 0}), store
    )
    done = subprocess.run(
        [sys.executable, "-c", PART, dataset.folder], capture_output=True, text=True, check=True
    )
    size, resident = map(int, done.stdout.split())
    assert size > 31_000 and resident < size / 6, (size, resident)


# --- identity ------------------------------------------------------------------------------


def test_the_id_follows_content_and_settings(digits: Project, store: Store, project) -> None:
    before = dataset_id(digits, store)
    file = next((digits.root / "digits" / "3").iterdir())
    os.utime(file)
    assert dataset_id(digits, store) == before
    other = {"source": "images", "path": "digits", "color": "grey"}
    changed = [
        dataset_id(project(**other, size=[8, 9]), store),
        dataset_id(project(**other, size=[8, 8], split={"seed": 1}), store),
        dataset_id(project(**other, size=[8, 8], loss="cross-entropy"), store),
    ]
    content = file.read_bytes()
    file.write_bytes(content + b"x")
    changed.append(dataset_id(digits, store))
    file.write_bytes(content)
    assert dataset_id(digits, store) == before
    file.rename(file.parent.parent / "4" / "moved.png")  # another label
    changed.append(dataset_id(digits, store))
    assert len({before, *changed}) == 5


def test_the_id_of_arrays_follows_the_users_code(tmp_path: Path, project, store: Store) -> None:
    (tmp_path / "mine.py").write_text("import near\ndef load(): return near.data\n")
    (tmp_path / "near.py").write_text("data = 1\n")
    asked = project(source="mine:load")
    before = dataset_id(asked, store)
    os.utime(tmp_path / "near.py")
    assert dataset_id(asked, store) == before
    (tmp_path / "near.py").write_text("data = 2\n")
    assert dataset_id(asked, store) != before


def test_a_dataset_is_made_once(digits: Project, store: Store) -> None:
    said: list[str] = []
    first = prepare(digits, store, on_progress=said.append)
    stamp = (Path(first.folder) / "inputs.npy").stat().st_ino
    assert said
    said.clear()
    assert prepare(digits, store, on_progress=said.append) == first
    assert not said and (Path(first.folder) / "inputs.npy").stat().st_ino == stamp


def test_two_preparations_give_the_same_bytes(digits: Project, tmp_path: Path) -> None:
    folders = [Path(prepare(digits, open_store(tmp_path / name)).folder) for name in ("one", "two")]
    for file in sorted(path.relative_to(folders[0]) for path in folders[0].rglob("*.*")):
        if file.name != "dataset.json":  # holds the folder's own path
            assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


@pytest.mark.parametrize("damage", ["inputs.npy", "train.npy", "dataset.json", "samples"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_damaged_dataset_is_made_again(
    digits: Project, store: Store, damage: str, how: str
) -> None:
    folder = Path(prepare(digits, store).folder)
    before = (folder / "inputs.npy").read_bytes()
    target = folder / damage
    if target.is_dir():
        shutil.rmtree(target)
    elif how == "gone":
        target.unlink()
    else:
        os.truncate(target, target.stat().st_size // 2)
    assert len(open_split(prepare(digits, store), "test")) > 0
    assert (folder / "inputs.npy").read_bytes() == before


def test_a_store_may_be_moved(digits: Project, store: Store) -> None:
    prepare(digits, store)
    moved = store.root.rename(store.root.parent / "moved")
    dataset = prepare(digits, open_store(moved))
    assert dataset.folder.startswith(str(moved))
    assert len(everything(dataset, "test")[0]) == dataset.splits["test"]


# --- what goes wrong -----------------------------------------------------------------------


def test_unreadable_images_are_refused_or_left_out(pictures: Path, project, store: Store) -> None:
    (pictures / "cat" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    asked = {"source": "images", "path": "pictures"}
    with pytest.raises(DataError, match=r"1 of 24 samples cannot be read: cat/3\.png") as caught:
        prepare(project(**asked), store)
    assert "data.max_unreadable = 0.05" in caught.value.mend
    dataset = prepare(project(**asked, max_unreadable=0.05), store)
    assert dataset.samples == 23
    assert (
        next(f for f in dataset.quality if f.kind == "unreadable").examples[0].startswith("cat/3")
    )


def test_rows_without_a_label_are_refused_or_dropped(people: Path, project, store: Store) -> None:
    lines = people.read_text().splitlines()
    lines[4] = lines[4].replace("healthy", "nan").replace("ill", "nan")
    people.write_text("\n".join(lines))
    asked = {"source": "csv", "path": "people.csv", "target": "ill"}
    with pytest.raises(DataError, match="1 row has no label in 'ill': line 5"):
        prepare(project(**asked), store)
    dataset = prepare(project(**asked, missing_target="drop"), store)
    assert dataset.samples == 59
    assert "1 row without a label" in " ".join(f.message for f in dataset.quality)


def test_nothing_is_left_behind_by_a_refusal(pictures: Path, project, store: Store) -> None:
    (pictures / "dog" / "0.png").write_bytes(b"")
    with pytest.raises(DataError):
        prepare(project(source="images", path="pictures"), store)
    assert [path.name for path in (store.root / "data").iterdir() if path.is_dir()] == []


def test_an_unknown_source_and_an_unknown_split(digits: Project, project, store: Store) -> None:
    with pytest.raises(UsageError, match="did you mean 'images'"):
        prepare(project(source="image"), store)
    with pytest.raises(UsageError, match="no split 'val'"):
        open_split(prepare(digits, store), "val")


def test_arrays_that_were_cut_short_are_named(digits: Project, store: Store) -> None:
    dataset = prepare(digits, store)
    os.truncate(Path(dataset.folder) / "inputs.npy", 1000)
    with pytest.raises(StoreError, match=r"inputs\.npy is damaged"):
        open_split(dataset, "train")


def test_no_pickle_is_opened(digits: Project, store: Store) -> None:
    dataset = prepare(digits, store)
    np.save(Path(dataset.folder) / "targets.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(StoreError, match="damaged"):
        open_split(dataset, "train")


# --- interruptions: real processes ---------------------------------------------------------

PREPARE = """
import sys
from pathlib import Path
from modelyard.data.dataset import prepare
from modelyard.spec.project import Project
from modelyard.store import open_store
project = Project.model_validate_json(sys.argv[1], strict=False)
dataset = prepare(project, open_store(Path(sys.argv[2])), on_progress=lambda text: print(text, flush=True))
print("made", dataset.id, flush=True)
"""


def start(asked: Project, store: Path) -> subprocess.Popen[str]:
    content = {**asked.model_dump(mode="json"), "root": str(asked.root)}
    command = [sys.executable, "-c", PREPARE, json.dumps(content), str(store)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("line", ["preparing", "read", "fitting"])
def test_a_kill_leaves_nothing_half_written(digits: Project, store: Store, line: str) -> None:
    process = start(digits, store.root)
    assert process.stdout is not None
    for said in process.stdout:
        if said.startswith(line):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    folder = store.dataset_folder(dataset_id(digits, store))
    assert not folder.exists()
    dataset = prepare(digits, store)
    assert dataset.samples == 600 and len(open_split(dataset, "train")) == dataset.splits["train"]
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_two_processes_prepare_one_dataset(digits: Project, store: Store) -> None:
    running = [start(digits, store.root) for _ in range(3)]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], outputs
    assert sum("fitting" in out for out, _ in outputs) == 1
    assert len({out.splitlines()[-1] for out, _ in outputs}) == 1


def test_data_that_changes_meanwhile_is_noticed(digits: Project, store: Store) -> None:
    def change(text: str) -> None:
        if text.startswith("fitting"):
            next((digits.root / "digits" / "1").iterdir()).unlink()

    with pytest.raises(DataError, match="changed while it was being prepared"):
        prepare(digits, store, on_progress=change)
    assert prepare(digits, store).samples == 599


def test_a_full_disk_is_one_clear_error(digits: Project, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(small)]
    mounted = subprocess.run(mount, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(StoreError, match="disk is full"):
            prepare(digits, open_store(small))
        subprocess.run(["mount", "-o", "remount,size=10m", str(small)], check=True)
        assert prepare(digits, open_store(small)).samples == 600
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_second_look_at_many_files_is_quick(tmp_path: Path, project, store: Store) -> None:
    """Generous: reading 5,000 files again would still be under it, opening a database per file not."""
    for number in range(5000):
        folder = tmp_path / "many" / str(number % 10)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(b"%d" % number)
    asked = project(source="images", path="many")
    first = dataset_id(asked, store)
    started = time.perf_counter()
    assert dataset_id(asked, store) == first
    assert time.perf_counter() - started < 20


def test_the_record_is_whole_json(cancer: Project, store: Store) -> None:
    dataset = prepare(cancer, store)
    assert msgspec.json.decode(dataset.to_json(), type=Dataset) == dataset
