"""From a finished run to a bundle in the registry's blobs: exported, proved, described, kept.

::

    rebuild    the model from its code, with the weights of the best checkpoint
    export     to ONNX in a temporary folder
    prove      the same answers as the framework on held-out samples, within a limit
    record     golden inputs and outputs, samples as users send them, bundle.json, the card
    keep       every file under its digest, then the export's record
"""

import contextlib
import datetime
import importlib.metadata
import math
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from modelyard import __version__
from modelyard.backends import OWNS, open_backend, recognise
from modelyard.backends.base import Backend, Lora, OptimizerSettings, State
from modelyard.backends.snapshots import read_weights
from modelyard.backends.source import build_model, code_digest
from modelyard.backends.start_weights import start_model
from modelyard.bundle.card import write_card
from modelyard.bundle.format import (
    CARD,
    FORMAT_VERSION,
    GOLDEN,
    MANIFEST,
    MODEL,
    SAMPLES,
    BundleManifest,
    Sample,
)
from modelyard.bundle.golden import close, golden_tensors
from modelyard.bundle.verify import measure_parity, verify
from modelyard.data.dataset import Split, natural_samples, open_split
from modelyard.data.preprocess import encode
from modelyard.spec.errors import ExportError, from_os_error
from modelyard.spec.losses import own_functions
from modelyard.spec.records import Bundle, Checkpoint, Dataset, Parity, Run
from modelyard.spec.signature import Signature
from modelyard.spec.start_weights import StartWeights
from modelyard.spec.work import World
from modelyard.store.files import digest_bytes
from modelyard.store.modelpack import put_bundle, read_manifest, whole
from modelyard.store.store import Store
from modelyard.tasks import open_task
from modelyard.tasks.signature import signature_of

PARITY_SAMPLES = 256
GOLDEN_SAMPLES = 8
_SEARCHED = 4096
_PACKAGES = (
    "numpy",
    "pillow",
    "torch",
    "keras",
    "tensorflow-cpu",
    "jax",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "safetensors",
)


@dataclass(frozen=True)
class Adapting:
    """How a run's adapters come over its weights."""

    lora: Lora
    start: StartWeights | None


@dataclass(frozen=True)
class _Trained:
    """The framework's model with its best weights, and what it is proved on."""

    backend: Backend
    state: State
    signature: Signature
    framework: str
    split: Split
    """Held-out samples."""

    def outputs(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.backend.evaluate(self.state, inputs)


def export_key(run: Run) -> str:
    """Names the export of a run's best checkpoint: another one where the weights or the format change."""
    weights = run.best.files if run.best else {}
    content = msgspec.json.encode([FORMAT_VERSION, run.id, weights], order="sorted")
    return digest_bytes(content).removeprefix("sha256:")[:32]


def export(
    run: Run,
    dataset: Dataset,
    store: Store,
    *,
    name: str,
    description: str = "",
    root: Path,
    build: str,
    args: dict[str, Any],
    adapting: Adapting | None = None,
    parity_limit: float = 1e-4,
) -> Bundle:
    """Make the bundle of ``run``'s best checkpoint, or return the one that is there already.

    ``root``, ``build`` and ``args`` are the project's: they rebuild the model; ``adapting`` puts a run's
    adapters over the weights that they were trained on. Raises ExportError
    where the model cannot be exported, its code is not what was trained, or the exported one answers
    differently by more than ``parity_limit``; StoreError for a damaged checkpoint or a full disk.
    """
    record = store.export_record(export_key(run))
    made = store.read_or_none(record, Bundle)
    same = made and made.name == name and made.parity.largest_error <= parity_limit
    if made and same and whole(store, made.digest):
        return made
    _check_inputs(run, dataset, root, build)
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=record.parent, prefix=".new.") as temporary,
            _trained(run, dataset, root, build, args, adapting) as trained,
        ):
            folder = Path(temporary)
            manifest = _fill(folder, trained, run, dataset, name, description, parity_limit)
            verify(folder)
            digest = put_bundle(store, folder)
    except OSError as error:
        raise from_os_error(error, record.parent) from error
    bundle = _bundle(store, digest, manifest)
    store.write(record, bundle)
    return bundle


def _check_inputs(run: Run, dataset: Dataset, root: Path, build: str) -> None:
    if run.dataset != dataset.id:
        raise ExportError(
            f"run {run.id} was trained on other data ({run.dataset}) than this ({dataset.id})",
            "train again with `yard train`",
        )
    trained_code = run.inputs.get("code", "")
    if trained_code.startswith("sha256:") and trained_code != code_digest(
        root, build, *own_functions(dataset.task)
    ):
        raise ExportError(
            f"the code of {build} has changed since run {run.id} was trained",
            "train again with `yard train`, or put the code back as it was",
        )


@contextlib.contextmanager
def _trained(
    run: Run,
    dataset: Dataset,
    root: Path,
    build: str,
    args: dict[str, Any],
    adapting: Adapting | None,
) -> Iterator[_Trained]:
    best = _best(run)
    signature = signature_of(dataset.input, dataset.task)

    def make() -> object:
        natural = dataset.input
        return build_model(
            root, build, args, signature, dataset.task, seed=run.seed, natural=natural
        )

    model = make()
    backend = open_backend(recognise(model))
    with backend.join(World(rank=0, size=1, rendezvous=""), device="cpu", threads=1):
        # Nothing is trained here: any optimizer will do.
        settings = OptimizerSettings(name="sgd")
        if adapting is not None:  # the checkpoint lacks what is frozen: as in a worker
            settings = replace(settings, lora=adapting.lora)
            backend.seed(run.seed)
            model = make()
            if adapting.start is not None:
                model, _ = start_model(backend, model, signature, adapting.start)
        state = backend.begin(model, dataset.task, settings, signature)
        state = backend.restore(state, read_weights(Path(best.folder), best.files))
        package = next((package for package, owner in OWNS.items() if owner == backend.name), "")
        yield _Trained(
            backend=backend,
            state=state,
            signature=signature,
            framework=f"{backend.name} {_version(package)}".strip(),
            split=_held_out(dataset),
        )


def _best(run: Run) -> Checkpoint:
    if run.best is None:
        raise ExportError(
            f"run {run.id} ({run.state}) has no checkpoint to export",
            "run `yard train`: it goes on where it ended",
        )
    return run.best


def _held_out(dataset: Dataset) -> Split:
    """The test split; where the project asked for none, what there is."""
    for name in ("test", "validation", "train"):
        if dataset.splits.get(name):
            return open_split(dataset, name)
    raise ExportError("the dataset has no samples to prove the model on", "see `yard check`")


def _fill(
    folder: Path,
    trained: _Trained,
    run: Run,
    dataset: Dataset,
    name: str,
    description: str,
    limit: float,
) -> BundleManifest:
    """Write every file of the bundle into ``folder``."""
    trained.backend.export(trained.state, folder / MODEL, trained.signature)
    inputs, _ = trained.split.batch(np.arange(min(PARITY_SAMPLES, len(trained.split))))
    parity = measure_parity(
        folder / MODEL,
        trained.signature,
        inputs,
        trained.outputs,
        framework=trained.framework,
        limit=limit,
    )
    samples = _write_golden(folder, trained, dataset)
    manifest = _manifest(trained, run, dataset, name, description, parity, samples)
    (folder / MANIFEST).write_bytes(manifest.to_json())
    (folder / CARD).write_text(write_card(manifest, run, dataset), encoding="utf-8")
    return manifest


def _write_golden(folder: Path, trained: _Trained, dataset: Dataset) -> tuple[Sample, ...]:
    """Golden tensors and the natural samples they were made from, with the framework's answers."""
    from safetensors.numpy import save

    naturals = natural_samples(dataset)[:GOLDEN_SAMPLES]
    if naturals:
        inputs = encode(dataset.input, [item for _, item, _ in naturals])
        _check_encoding(inputs, naturals[0][0], trained)
    else:
        inputs, _ = trained.split.batch(np.arange(min(GOLDEN_SAMPLES, len(trained.split))))
    outputs = trained.outputs(inputs)
    (folder / GOLDEN).write_bytes(save(golden_tensors(trained.signature, inputs, outputs)))
    (folder / SAMPLES).mkdir()
    answers = open_task(dataset.task).decode(outputs)
    samples = []
    for (file, item, truth), answer in zip(naturals, answers, strict=False):
        content = item if isinstance(item, bytes) else msgspec.json.encode(item)
        (folder / SAMPLES / file).write_bytes(content)
        samples.append(Sample(file=f"{SAMPLES}/{file}", truth=truth, answer=answer))
    return tuple(samples)


def _check_encoding(inputs: NDArray[Any], file: str, trained: _Trained) -> None:
    """The first sample, read as the service will read it, must be what training saw.

    Only looked for where the split is small enough to be searched whole.
    """
    split = trained.split
    if len(split) > _SEARCHED:
        return
    for start in range(0, len(split), 256):
        rows, _ = split.batch(np.arange(start, min(start + 256, len(split))))
        if close(trained.signature, rows, inputs[:1]).any():
            return
    raise ExportError(
        f"the sample {file} becomes another input for the service than it was in training",
        "prepare the data again: delete its folder in the store and run `yard up`",
    )


def _manifest(
    trained: _Trained,
    run: Run,
    dataset: Dataset,
    name: str,
    description: str,
    parity: Parity,
    samples: tuple[Sample, ...],
) -> BundleManifest:
    weights = digest_bytes(msgspec.json.encode(_best(run).files, order="sorted"))
    return BundleManifest(
        name=name,
        description=description,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        framework=trained.framework,
        signature=trained.signature,
        input=dataset.input,
        task=dataset.task,
        parity=parity,
        samples=samples,
        # JSON knows no NaN; a metric without a value is left out rather than written as null.
        metrics={key: value for key, value in run.metrics.items() if math.isfinite(value)},
        lineage={
            "run": run.id,
            "dataset": dataset.id,
            "code": run.inputs.get("code", ""),
            "checkpoint": weights,
            **({"start": run.start.digest} if run.start else {}),
        },
        environment=_environment(),
    )


def _bundle(store: Store, digest: str, manifest: BundleManifest) -> Bundle:
    return Bundle(
        digest=digest,
        name=manifest.name,
        run=manifest.lineage["run"],
        dataset=manifest.lineage["dataset"],
        signature=manifest.signature,
        input=manifest.input,
        task=manifest.task,
        parity=manifest.parity,
        metrics=manifest.metrics,
        size=sum(layer.size for layer in read_manifest(store, digest).layers),
        created=manifest.created,
    )


def _environment() -> dict[str, str]:
    found = {"modelyard": __version__, "python": platform.python_version()}
    found |= {package: version for package in _PACKAGES if (version := _version(package))}
    return found | {"platform": platform.platform(terse=True)}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
