"""Images from disk to batches that a step can take: ours against DataLoader, Hugging Face datasets, WebDataset and Grain.

Run with ``python -m benchmarks.data [--rounds N] [--samples N] [--files N] [--only prepared] [--json]``; the peers come from
``make bench-peers``. Two comparisons, each contender in a process of its own, in turns:

- **prepared**: images 3x32x32 (uint8) that lie on disk in the form that each one keeps them in, read in batches of
  256, from the second pass on; the baseline is a plain copy of each batch out of the mapped file, in order. Ours
  and the baseline have the memory settings that the engine gives a worker.
- **decoding**: the same images as PNG files in class folders, decoded to batches; two processes or threads each. Ours
  once for a preparation (in order), and once from files that are kept (shuffled, as a training asks for them).

The bars: in order at least 0.8 and shuffled at least 0.4 of the copy; shuffled at least 5 times Hugging Face datasets
and 10 times a DataLoader over arrays; decoding at least 1.2 times the best peer.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness import ROOT, Contender, compare, options, peers_python, show
from modelyard.engines.local import Local
from modelyard.spec.work import Job

BATCH, SHAPE = 256, (3, 32, 32)
Batches = Iterator[int]
"""The size of each batch, once it is there."""


def make_data(place: Path, samples: int, files: int) -> None:
    """``images.npy`` and its Arrow twin; ``png/<class>/*.png`` and ``png.tar`` of the first ``files``."""
    images = np.random.default_rng(0).integers(0, 256, (samples, *SHAPE), dtype=np.uint8)
    np.save(place / "images.npy", images)
    with tarfile.open(place / "png.tar", "w") as archive:
        for number, pixels in enumerate(images[:files]):
            # Blurred noise, so that a file is as large as that of a photograph and not larger.
            soft = (pixels.astype(np.uint16) + np.roll(pixels, 1, 1) + np.roll(pixels, 1, 2)) // 3
            written = io.BytesIO()
            Image.fromarray(soft.astype(np.uint8).transpose(1, 2, 0)).save(written, "png")
            folder = place / "png" / str(number % 10)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.png").write_bytes(written.getvalue())
            entry = tarfile.TarInfo(f"{number:06d}.png")
            entry.size = len(written.getvalue())
            archive.addfile(entry, io.BytesIO(written.getvalue()))


def copy(place: Path) -> Batches:
    images = np.asarray(np.load(place / "images.npy", mmap_mode="r"))
    for start in range(0, len(images) - BATCH + 1, BATCH):
        yield len(images[start : start + BATCH].copy())


def ours(place: Path, *, shuffled: bool) -> Batches:
    from modelyard.data.cursor import Cursor
    from modelyard.data.dataset import Split
    from modelyard.spec.signature import ImageInput

    images = np.asarray(np.load(place / "images.npy", mmap_mode="r"))
    spec = ImageInput(height=32, width=32, color="rgb", mean=(0.5,) * 3, std=(0.25,) * 3)
    everything = np.arange(len(images))
    targets = np.zeros(len(images), np.int64)
    split = Split(spec=spec, inputs=images, targets=targets, positions=everything)
    cursor = Cursor(len(images), BATCH, 0)
    for step in range(len(images) // BATCH):
        places = cursor.indices(step) if shuffled else everything[step * BATCH : (step + 1) * BATCH]
        yield len(split.stored(places)[0])


def loader_over_arrays(place: Path) -> Batches:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    images = torch.from_numpy(np.asarray(np.load(place / "images.npy", mmap_mode="c")))
    for (batch,) in DataLoader(TensorDataset(images), batch_size=BATCH, shuffle=True):
        yield len(batch)


def hugging_face(place: Path, *, shuffled: bool) -> Batches:
    import datasets

    datasets.disable_progress_bars()
    folder = place / "arrow"
    if not folder.exists():
        images = np.load(place / "images.npy")
        features = datasets.Features({"x": datasets.Array3D(SHAPE, "uint8")})
        datasets.Dataset.from_dict({"x": images}, features=features).save_to_disk(str(folder))
    data = datasets.load_from_disk(str(folder)).with_format("numpy")
    data = data.shuffle(seed=0) if shuffled else data
    for batch in data.iter(batch_size=BATCH):
        yield len(batch["x"])


def ours_png(place: Path) -> Batches:
    from modelyard.data.sources.images import Images
    from modelyard.spec.project import DataSection

    source = Images(place, DataSection(source="images", path="png", size=(32, 32)))
    for start in range(0, len(source), BATCH):
        yield len(source.rows(start, min(start + BATCH, len(source))).values)


def ours_kept(place: Path) -> Batches:
    """Files kept as they came, in the shuffled order of a training, the next batches decoded ahead."""
    from modelyard.data.cursor import Cursor
    from modelyard.data.dataset import Split
    from modelyard.data.feed import BatchMaker
    from modelyard.data.packed import PACK, PackedPictures, PackWriter
    from modelyard.spec.signature import ImageInput

    spec = ImageInput(height=32, width=32, color="rgb", mean=(0.5,) * 3, std=(0.25,) * 3)
    if not (place / PACK).exists():
        with PackWriter(place) as pack:
            files = sorted(place.glob("png/*/*.png"))
            np.save(place / "places.npy", pack.append([file.read_bytes() for file in files]))
    pictures = PackedPictures(spec, place, np.load(place / "places.npy"))
    everything = np.arange(len(pictures))
    split = Split(spec=spec, inputs=pictures, targets=everything, positions=everything)
    maker = BatchMaker(split, Cursor(len(split), BATCH, 0))
    for step in range(len(split) // BATCH):
        yield len(maker.make(step).inputs)
    pictures.close()


def loader_over_png(place: Path) -> Batches:
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Files(Dataset[Any]):
        def __init__(self) -> None:
            self.files = sorted(place.glob("png/*/*.png"))

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, at: int) -> torch.Tensor:
            return torch.from_numpy(_decoded(self.files[at].read_bytes()))

    for batch in DataLoader(Files(), batch_size=BATCH, num_workers=2):
        yield len(batch)


def web_dataset(place: Path) -> Batches:
    import webdataset

    url = str(place / "png.tar")
    data = webdataset.WebDataset(url, shardshuffle=False).decode("rgb8").to_tuple("png")
    for (batch,) in data.batched(BATCH):
        yield len(batch)


def grain_files(place: Path) -> Batches:
    import grain

    files = sorted(place.glob("png/*/*.png"))
    data = grain.MapDataset.source(files).map(lambda file: _decoded(file.read_bytes()))
    for batch in data.batch(BATCH).to_iter_dataset():
        yield len(batch)


def _decoded(content: bytes) -> Any:
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((32, 32))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


PREPARED: dict[str, tuple[str, Callable[[Path], Batches]]] = {
    "memory copy": ("numpy", copy),
    "modelyard in order": ("numpy", partial(ours, shuffled=False)),
    "modelyard shuffled": ("numpy", partial(ours, shuffled=True)),
    "DataLoader over arrays shuffled": ("torch", loader_over_arrays),
    "Hugging Face in order": ("datasets", partial(hugging_face, shuffled=False)),
    "Hugging Face shuffled": ("datasets", partial(hugging_face, shuffled=True)),
}
DECODING: dict[str, tuple[str, Callable[[Path], Batches]]] = {
    "DataLoader over PNG": ("torch", loader_over_png),
    "WebDataset": ("webdataset", web_dataset),
    "Grain": ("grain", grain_files),
    "modelyard PNG kept, shuffled": ("PIL", ours_kept),
    "modelyard PNG": ("PIL", ours_png),
}


def turn(name: str, place: Path) -> float:
    """Samples a second of one pass, after one that warms the page cache and the code."""
    _, batches = (PREPARED | DECODING)[name]
    for _ in batches(place):
        pass
    began = time.perf_counter()
    samples = sum(batches(place))
    return samples / (time.perf_counter() - began)


def in_own_process(name: str, place: Path) -> float:
    command = [peers_python(), "-m", "benchmarks.data", "--turn", name, "--place", str(place)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    if name.startswith(("modelyard", "memory")):
        job = Job(name="turn", arguments=(), size=1, folder=str(place))
        environment |= Local().plan(job)["processes"][0]["environment"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def installed(package: str) -> bool:
    asked = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
    done = subprocess.run([peers_python(), "-c", asked], capture_output=True, check=False)
    return done.returncode == 0


def main() -> None:
    parser = options(__doc__ or "", rounds=5)
    parser.add_argument("--samples", type=int, default=100_000, help="prepared; default 100,000")
    parser.add_argument("--files", type=int, default=10_000, help="PNG files; default 10,000")
    parser.add_argument("--only", choices=["prepared", "decoding"], help="default: both")
    parser.add_argument("--turn", choices=[*PREPARED, *DECODING], help="one turn, and no table")
    parser.add_argument("--place", type=Path, help="where the data of that turn lie")
    chosen = parser.parse_args()
    if chosen.turn:
        sys.stdout.write(f"{turn(chosen.turn, chosen.place)}\n")
        return
    with tempfile.TemporaryDirectory(prefix="benchmark-data-") as folder:
        make_data(Path(folder), chosen.samples, chosen.files)
        for title, table in (("prepared", PREPARED), ("decoding", DECODING)):
            if chosen.only not in (None, title):
                continue
            contenders = [
                Contender(name, partial(in_own_process, name, Path(folder)))
                for name, (needs, _) in table.items()
                if installed(needs)
            ]
            rows = compare(contenders, chosen.rounds, warm_up=0)
            show(f"{title}, batches of {BATCH}", "samples/s", rows, as_json=chosen.json)


if __name__ == "__main__":
    main()
