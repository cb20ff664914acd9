"""The one data plane: every protocol's requests are validated, batched, inferred and counted here.

::

    infer    tensors -> validate -> batcher (wait, join others) -> runtime -> tensors
    predict  plain input -> encode -> infer -> decode -> answers for people
    prove    the bundle's golden inputs and samples take the same way; only then is the plane ready
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from modelyard.bundle.format import GOLDEN, BundleManifest, Sample, read_manifest
from modelyard.bundle.golden import golden_of
from modelyard.data.preprocess import encode
from modelyard.serving.batcher import Batcher, DeadlineExceeded, Tensors
from modelyard.serving.metrics import Metrics
from modelyard.serving.runtime import BUILT_IN
from modelyard.serving.runtime.base import Runtime
from modelyard.spec.errors import DataError, RequestError, ServingError, nearest
from modelyard.spec.plugins import load as load_plugin
from modelyard.spec.signature import Signature, Tensor
from modelyard.tasks import open_task
from modelyard.tasks.parts import by_name

_STALL_SECONDS = 120.0
"""A single call of the model that takes longer counts as stuck."""
_PROOF_SECONDS = 120.0
_INLINE_BYTES = 32 * 1024
"""Encoding plain input up to this size takes well under a millisecond: not worth a thread."""


class Plane:
    """One model version, loaded; ``ready`` only after ``prove`` has passed."""

    def __init__(
        self,
        manifest: BundleManifest,
        runtime: Runtime,
        *,
        folder: Path,
        model: str,
        version: int,
        digest: str,
        max_batch: int,
        max_request_bytes: int,
        timeout_seconds: float,
    ) -> None:
        self.manifest = manifest
        self.folder = folder
        self.model = model
        self.version = version
        self.digest = digest
        self.max_request_bytes = max_request_bytes
        self.timeout_seconds = timeout_seconds
        self.metrics = Metrics(model, version, digest, manifest.task.classes)
        self._runtime = runtime
        self._task = open_task(manifest.task)
        self._ready = False
        self._encoders = ThreadPoolExecutor(2, thread_name_prefix="encode")
        self._batcher = Batcher(self._run, self.metrics, max_batch=max_batch)
        self.metrics.watch(lambda: self._batcher.depth, lambda: self.ready)

    @property
    def signature(self) -> Signature:
        return self.manifest.signature

    @property
    def ready(self) -> bool:
        """True after the golden request gave the recorded answer, until draining or a stall."""
        return self._ready and self.alive

    @property
    def alive(self) -> bool:
        """False when inference makes no progress any more."""
        return not self._batcher.stalled(max(_STALL_SECONDS, 2 * self.timeout_seconds))

    def metadata(self) -> dict[str, Any]:
        """What is served, JSON-able, in no protocol's words."""
        about: dict[str, Any] = msgspec.to_builtins(
            {
                "model": self.model,
                "version": self.version,
                "digest": self.digest,
                "description": self.manifest.description,
                "framework": self.manifest.framework,
                "runtime": self.manifest.runtime,
                "task": self.manifest.task,
                "input": self.manifest.input,
                "signature": self.signature,
                "metrics": self.manifest.metrics,
            }
        )
        return about

    async def infer(self, inputs: Tensors, deadline: float | None = None) -> Tensors:
        """Tensors in, tensors out, in time.

        ``inputs`` hold every input of the signature with a common batch axis 0; ``deadline`` is a
        ``time.monotonic`` (default: now + the service's timeout). Raises RequestError where the
        tensors do not fit the signature, Overloaded, DeadlineExceeded.
        """
        return await self._submit(inputs, self._latest(deadline))

    async def predict(
        self, items: list[Any], deadline: float | None = None
    ) -> list[dict[str, Any]]:
        """Plain input (image bytes, table rows, nested lists) -> one answer each.

        Raises RequestError for input that cannot be read.
        """
        return await self._answers(items, self._latest(deadline))

    async def prove(self) -> None:
        """Become ready by answering what the bundle recorded. Raises ServingError where an answer differs."""
        golden_inputs, golden_outputs = _golden(self.folder, self.signature)
        await self._prove_tensors(golden_inputs, golden_outputs)
        for sample in self.manifest.samples:
            await self._prove_sample(sample)
        self._ready = True

    def sample_path(self, sample: Sample) -> Path:
        """Where a sample lies. Raises ServingError for one outside the bundle."""
        path = (self.folder / sample.file).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise ServingError(f"the bundle is damaged: sample {sample.file!r} is outside of it")
        return path

    def drain(self) -> None:
        """Say "not ready" from now on; requests that come anyway are still answered."""
        self._ready = False

    def close(self, seconds: float = 5.0) -> None:
        """Answer what waits and end the threads."""
        self._ready = False
        self._batcher.close(seconds)
        self._encoders.shutdown(wait=False)

    def _latest(self, deadline: float | None) -> float:
        latest = time.monotonic() + self.timeout_seconds
        return latest if deadline is None else min(deadline, latest)

    async def _submit(self, inputs: Tensors, deadline: float) -> Tensors:
        rows = validate(self.signature, inputs)
        return await self._batcher.infer(inputs, rows, deadline)

    async def _answers(self, items: list[Any], deadline: float) -> list[dict[str, Any]]:
        if not items:
            raise RequestError("there is nothing to predict", "send at least one image or row")
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                tensor = await self._encode(items)
        except TimeoutError:
            raise DeadlineExceeded("the input could not be read in time", "send less") from None
        outputs = await self._submit(by_name(self.signature, tensor), deadline)
        return self._task.decode(outputs[self.signature.outputs[0].name])

    async def _encode(self, items: list[Any]) -> NDArray[Any]:
        size = sum(len(item) for item in items if isinstance(item, (bytes, dict, list)))
        try:
            if size <= _INLINE_BYTES:
                return encode(self.manifest.input, items)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._encoders, encode, self.manifest.input, items)
        except DataError as error:
            raise RequestError(error.what, error.mend) from error

    def _run(self, inputs: Tensors) -> Tensors:
        outputs = self._runtime.run(inputs)
        if self._ready:
            self.metrics.answers(outputs[self.signature.outputs[0].name])
        return outputs

    async def _prove_tensors(self, inputs: NDArray[Any], expected: NDArray[np.float32]) -> None:
        """All rows at once, then each alone: batching must not change an answer."""
        output = self.signature.outputs[0].name
        deadline = time.monotonic() + _PROOF_SECONDS  # the first calls of a runtime may be slow
        together = (await self._submit(by_name(self.signature, inputs), deadline))[output]
        alone = [
            (await self._submit(by_name(self.signature, inputs[i : i + 1]), deadline))[output]
            for i in range(len(inputs))
        ]
        for how, answer in (("together", together), ("one by one", np.concatenate(alone))):
            if answer.shape != expected.shape:
                raise _mismatch(f"shape {answer.shape} where {expected.shape} was recorded")
            error = np.abs(answer.astype(np.float64) - expected)
            if not (error <= self._tolerance(expected)).all():
                raise _mismatch(
                    f"the golden inputs ({how}) give outputs that differ by up to {error.max():.3g}; the limit is {self.manifest.parity.limit:.3g}"
                )

    async def _prove_sample(self, sample: Sample) -> None:
        """A sample as a user would send it must give the recorded answer."""
        path = self.sample_path(sample)
        try:
            content = path.read_bytes()
            item = msgspec.json.decode(content) if path.suffix == ".json" else content
        except (OSError, msgspec.DecodeError) as error:
            raise ServingError(
                f"the bundle is damaged: {path} cannot be read: {error}", _EXPORT_AGAIN
            ) from error
        [answer] = await self._answers([item], time.monotonic() + _PROOF_SECONDS)
        if not self._same_answer(answer, sample.answer):
            recorded = sample.answer.get("label", sample.answer.get("value"))
            raise _mismatch(
                f"{sample.file} gives {answer.get('label', answer.get('value'))!r}, recorded was {recorded!r}"
            )

    def _same_answer(self, answer: dict[str, Any], recorded: dict[str, Any]) -> bool:
        if "label" in recorded:
            # Two labels within the parity limit of each other may swap places.
            odds = answer["probabilities"].get(recorded["label"], 0.0)
            return bool(answer["probability"] - odds <= self.manifest.parity.limit)
        value = np.float64(recorded["value"])
        return bool(abs(answer["value"] - value) <= self._tolerance(value))

    def _tolerance(self, expected: Any) -> Any:
        """Absolute near zero, relative for large values: float32 carries about seven digits."""
        return self.manifest.parity.limit * np.maximum(1.0, np.abs(expected))


_EXPORT_AGAIN = "export the bundle again with `yard up`"


def load(
    folder: Path,
    *,
    model: str = "",
    version: int = 1,
    digest: str = "",
    threads: int = 1,
    max_batch: int = 64,
    max_request_bytes: int = 32 * 1024 * 1024,
    timeout_seconds: float = 30.0,
) -> Plane:
    """Load an unpacked bundle. Raises StoreError (unreadable), ServingError (the model does not open)."""
    manifest = read_manifest(folder)
    runtime: Runtime = load_plugin("runtimes", manifest.runtime, BUILT_IN)()
    runtime.open(folder, manifest.signature, threads=threads)
    return Plane(
        manifest,
        runtime,
        folder=folder,
        model=model or manifest.name,
        version=version,
        digest=digest,
        max_batch=max_batch,
        max_request_bytes=max_request_bytes,
        timeout_seconds=timeout_seconds,
    )


def validate(signature: Signature, inputs: Tensors) -> int:
    """The number of rows, where ``inputs`` fit the signature. Raises RequestError."""
    expected = {tensor.name: tensor for tensor in signature.inputs}
    for name in inputs:
        if name not in expected:
            close = nearest(name, expected) or next(iter(expected))
            raise RequestError(f"there is no input {name!r}", f"did you mean {close!r}?")
    rows = 0
    for name, tensor in expected.items():
        if name not in inputs:
            raise RequestError(f"input {name!r} is missing", f"it takes {describe(tensor)}")
        array = inputs[name]
        if array.dtype != np.dtype(tensor.dtype):
            raise RequestError(
                f"input {name!r} has type {array.dtype}", f"it takes {describe(tensor)}"
            )
        fit_shape(tensor, array.shape)
        if tensor.below is not None and not ((array >= 0) & (array < tensor.below)).all():
            raise RequestError(
                f"input {name!r} has a number that is not in 0 … {tensor.below - 1}",
                f"it takes {describe(tensor)}",
            )
        if rows and array.shape[0] != rows:
            raise RequestError(
                f"input {name!r} has {array.shape[0]} rows, another input has {rows}",
                "send the same number of rows for every input",
            )
        rows = array.shape[0]
    return rows


def fit_shape(tensor: Tensor, shape: tuple[int, ...] | list[int]) -> None:
    """Raises RequestError where ``shape`` is not one that ``tensor`` may have; allocates nothing."""
    fits = len(shape) == len(tensor.shape) and all(
        want in (None, have) for want, have in zip(tensor.shape, shape, strict=True)
    )
    if not fits or any(size < 1 for size in shape):
        raise RequestError(
            f"input {tensor.name!r} has shape {list(shape)}", f"it takes {describe(tensor)}"
        )


def describe(tensor: Tensor) -> str:
    """E.g. ``float32 [rows, 3, 32, 32]``."""
    sizes = [
        "rows" if not i and size is None else str(size or "any")
        for i, size in enumerate(tensor.shape)
    ]
    return f"{tensor.dtype} [{', '.join(sizes)}]"


def _golden(folder: Path, signature: Signature) -> tuple[NDArray[Any], NDArray[np.float32]]:
    path = folder / GOLDEN
    try:
        inputs, outputs = golden_of(signature, load_file(path))
    except (OSError, KeyError, SafetensorError) as error:
        raise ServingError(
            f"the bundle is damaged: {path} cannot be read: {error}", _EXPORT_AGAIN
        ) from error
    if not len(inputs):
        raise ServingError(f"{path} holds no golden inputs", _EXPORT_AGAIN)
    return inputs, outputs


def _mismatch(what: str) -> ServingError:
    return ServingError(
        f"this process does not give the answers that were recorded at export: {what}",
        "serve it where the versions of the bundle's `environment` are installed, or export it again",
    )
