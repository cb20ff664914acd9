"""Where the weights are that a project starts from: a run, a registry version, a file or a folder.

::

    run:digits-0123456789     the best checkpoint of that run, or its newest
    digits:3, digits@…        a version of the registry: its run's checkpoint, else its ONNX file
    weights/model.onnx        initializers by name
    weights/ (a folder)       safetensors, in one file or with an index; a checkpoint, a run, a bundle

Files that are pickles run code when they are read; they are refused, and so are addresses.
"""

import json
from pathlib import Path

import msgspec

from modelyard.backends.snapshots import NUMBERS
from modelyard.bundle.format import MANIFEST as BUNDLE
from modelyard.bundle.format import MODEL, BundleManifest
from modelyard.data.digest import file_digests
from modelyard.spec.errors import DataError, ModelError, NotFoundError, nearest
from modelyard.spec.project import Project
from modelyard.spec.records import Run
from modelyard.spec.start_weights import Started, StartWeights
from modelyard.spec.urls import is_url
from modelyard.store import Store, open_store, registry
from modelyard.store.files import digest_bytes, write_atomic
from modelyard.training import checkpoints

STARTED = "start.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
_KERAS = (".h5", ".keras")
_INDEX = ".safetensors.index.json"


def find_start(project: Project) -> StartWeights | None:
    """What ``model.weights`` means; None where it says nothing.

    Runs and models are looked for in the project's own store, also for a training in a scratch place.
    Raises ModelError or NotFoundError naming the field, and what would do.
    """
    reference = project.model.weights
    if not reference:
        return None
    if is_url(reference):
        raise ModelError(
            f"model.weights = {reference!r} is an address, and nothing is fetched from the network here",
            "fetch the files yourself, look at them, and name the folder they are in",
        )
    place = _Place(project, open_store(project.store_folder))
    path = (project.root / reference).resolve()
    if reference.startswith("run:"):
        return place.run(reference.removeprefix("run:"))
    if path.is_dir():
        return place.folder(path)
    if path.exists():
        return place.file(path)
    if "/" in reference or path.suffix in (".safetensors", ".onnx", *_PICKLES, *_KERAS):
        raise NotFoundError(
            f"model.weights = {reference!r}: there is no {path}", _near(path) or "check the path"
        )
    return place.version(reference)


def as_path(start: StartWeights) -> str:
    """A reference to the same that holds wherever the project lies, and in any store."""
    only = len(start.files) == 1 and start.kind != "checkpoint"
    return str(Path(start.folder) / next(iter(start.files))) if only else start.folder


def keep_started(folder: Path, started: Started) -> None:
    """Write down in the run's folder what came into the model; for worker 0."""
    write_atomic(folder / STARTED, started.to_json())


def read_started(folder: Path) -> Started | None:
    """None for a training that did not start from weights."""
    path = folder / STARTED
    return Started.from_json(path.read_bytes()) if path.exists() else None


class _Place:
    """A project and the store that its references are looked up in."""

    def __init__(self, project: Project, store: Store) -> None:
        self._model, self._store = project.model, store

    def run(self, identifier: str) -> StartWeights:
        folder = self._store.run_folder(identifier)
        if not identifier or not folder.is_dir():
            there = sorted(p.name for p in self._store.run_folder("").glob("*") if p.is_dir())
            close = nearest(identifier, there)
            hint = f"; did you mean 'run:{close}'?" if close else ""
            raise NotFoundError(
                f"model.weights = {self._model.weights!r}: there is no such run{hint}",
                f"there are: {', '.join(there) or 'none'}",
            )
        return self._run_in(folder)

    def version(self, reference: str) -> StartWeights:
        try:
            version = registry.resolve(self._store, reference)
        except NotFoundError as error:
            raise NotFoundError(
                f"model.weights = {reference!r} is no file, and {error.what}",
                f'{error.mend}; or write "run:ID", or a path',
            ) from error
        bundle = registry.unpack(self._store, version.digest)
        lineage = BundleManifest.from_json((bundle / BUNDLE).read_bytes()).lineage
        best = checkpoints.best(self._store.run_folder(version.run)) if version.run else None
        # The checkpoint has the framework's own names, which an ONNX file may have lost.
        same = best is not None and _digest(best.files) == lineage.get("checkpoint")
        if best is not None and same and not _adapters_only(Path(best.folder)):
            return self._checkpoint(Path(best.folder))
        return self._files(bundle, [MODEL], "onnx")

    def folder(self, path: Path) -> StartWeights:
        if (path / checkpoints.MANIFEST).is_file():
            return self._checkpoint(path)
        if (path / "checkpoints").is_dir():
            return self._run_in(path)
        indexes = sorted(path.glob(f"*{_INDEX}"))
        if indexes:
            return self._sharded(indexes[0])
        found = sorted(file.name for file in path.glob("*.safetensors"))
        if "model.safetensors" in found:
            found = ["model.safetensors"]
        if len(found) == 1:
            return self._files(path, found, "safetensors")
        if found:
            raise ModelError(
                f"model.weights: {path} holds {len(found)} safetensors files and no index: {', '.join(found[:5])}",
                f'name one of them, e.g. model.weights = "{self._model.weights.rstrip("/")}/{found[0]}"',
            )
        if (path / MODEL).is_file():
            return self._files(path, [MODEL], "onnx")
        if pickled := [file for file in sorted(path.iterdir()) if file.suffix in _PICKLES]:
            raise _pickled(pickled[0])
        raise ModelError(
            f"model.weights: {path} holds neither safetensors, an ONNX file nor a checkpoint",
            "name a file, a Hugging Face folder, a checkpoint's or a run's folder",
        )

    def file(self, path: Path) -> StartWeights:
        if path.name.endswith(_INDEX):
            return self._sharded(path)
        if path.suffix == ".safetensors":
            return self._files(path.parent, [path.name], "safetensors")
        if path.suffix == ".onnx":
            beside = path.with_name(f"{path.name}.data")
            names = [path.name, *([beside.name] if beside.is_file() else [])]
            return self._files(path.parent, names, "onnx")
        if path.suffix in _PICKLES:
            raise _pickled(path)
        if path.suffix in _KERAS:
            raise ModelError(
                f"model.weights: {path.name} is a file of Keras' own",
                "load it in the function that builds the model: `model.load_weights(path)`",
            )
        raise ModelError(
            f"model.weights: {path} is no kind of file that weights are read from",
            "name a .safetensors or .onnx file",
        )

    def _run_in(self, folder: Path) -> StartWeights:
        run = self._store.read_or_none(folder / "run.json", Run)
        best = checkpoints.best(folder) or checkpoints.latest(folder)[0]
        if best is None:
            raise NotFoundError(
                f"model.weights = {self._model.weights!r}: the run has no checkpoint yet",
                f"it is {run.state}; train it first" if run else "train it first",
            )
        return self._checkpoint(Path(best.folder))

    def _checkpoint(self, folder: Path) -> StartWeights:
        files = checkpoints.verified(folder).files
        if _adapters_only(folder):
            raise ModelError(
                f"model.weights = {self._model.weights!r} holds adapters and not the weights below them (train.lora)",
                'export that run with `yard up`, and name the version of the registry, e.g. "digits:3"',
            )
        return self._found("checkpoint", folder, files)

    def _sharded(self, index: Path) -> StartWeights:
        """Hugging Face's way with large models: ``weight_map``, name to file."""
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"model.weights: {index} cannot be read: {type(error).__name__}: {error}",
                "get the folder again",
            ) from error
        if away := [n for n in names if not isinstance(n, str) or Path(n).name != n]:
            raise ModelError(
                f"model.weights: {index} names {away[0]!r}, which is not a file beside it",
                "do not use this folder",
            )
        missing = [name for name in names if not (index.parent / name).is_file()]
        if missing:
            raise NotFoundError(
                f"model.weights: {index.name} names {', '.join(missing[:3])}, which is not in {index.parent}",
                "get the folder again",
            )
        return self._files(index.parent, names, "safetensors")

    def _files(self, folder: Path, names: list[str], kind: str) -> StartWeights:
        try:
            found = file_digests([folder / name for name in names], self._store.ledger)
        except DataError as error:
            raise ModelError(f"model.weights: {error.what}", error.mend) from error
        digests = {name: f"sha256:{one}" for name, one in zip(names, found, strict=True)}
        return self._found(kind, folder, digests)

    def _found(self, kind: str, folder: Path, files: dict[str, str]) -> StartWeights:
        plain = {
            "reference": self._model.weights,
            "kind": kind,
            "folder": str(folder),
            "files": files,
            "digest": _digest(files),
            "rename": self._model.rename,
            "fresh": self._model.fresh,
        }
        return msgspec.convert(plain, StartWeights)


def _digest(files: dict[str, str]) -> str:
    return digest_bytes(msgspec.json.encode(files, order="sorted"))


def _adapters_only(checkpoint: Path) -> bool:
    return "base" in json.loads((checkpoint / NUMBERS).read_bytes())


def _near(path: Path) -> str:
    """What lies where the path points, with nearly that name."""
    there = sorted(file.name for file in path.parent.glob("*")) if path.parent.is_dir() else []
    close = nearest(path.name, there)
    return f"did you mean {close!r}?" if close else ""


def _pickled(path: Path) -> ModelError:
    return ModelError(
        f"model.weights: {path.name} is a pickle, which can run any code when it is read",
        "write it as safetensors, where you trust it: safetensors.torch.save_file(torch.load("
        f'"{path.name}", weights_only=True), "model.safetensors"); of a transformers model: model.save_pretrained(folder)',
    )
