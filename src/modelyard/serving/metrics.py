"""What a serving process counts, for Prometheus: base units, counters end in ``_total``."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SHED_REASONS = ("deadline", "rows", "bytes", "inflight", "closing")


class Metrics:
    """All series of one model version in one process, in a registry of their own."""

    def __init__(self, model: str, version: int, digest: str, classes: Iterable[str] = ()) -> None:
        self._registry = registry = CollectorRegistry()
        self._names = {"model": model, "version": str(version)}
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        Gauge(
            "modelyard_model_info",
            "The model that this process serves; always 1.",
            ["model", "version", "digest"],
            registry=registry,
        ).labels(model, str(version), digest).set(1)
        self._requests = Histogram(
            "modelyard_request_duration_seconds",
            "From a request's head to its answer.",
            ["model", "version", "protocol", "code"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue = self._histogram(
            "queue_duration_seconds", "From admission to the start of inference.", _SECONDS
        )
        self._inference = self._histogram(
            "inference_duration_seconds", "One call of the model.", _SECONDS
        )
        self._batch = self._histogram("batch_size", "Rows in one call of the model.", _ROWS)
        self.inflight: Gauge = self._gauge("inflight_requests", "Requests being answered.")
        self._depth = self._gauge("queue_depth", "Rows that wait for inference.")
        self._ready = self._gauge("ready", "1 once the golden request gave the recorded answer.")
        self._shed = Counter(
            "modelyard_shed_total",
            "Requests refused because they could not be answered in time.",
            ["model", "version", "reason"],
            registry=registry,
        )
        for reason in SHED_REASONS:
            self._shed.labels(**self._names, reason=reason)
        predictions = Counter(
            "modelyard_predictions_total",
            "Answers by predicted class.",
            ["model", "version", "label"],
            registry=registry,
        )
        self._labels = [predictions.labels(**self._names, label=name) for name in classes]

    def request(self, protocol: str, code: int, seconds: float) -> None:
        self._requests.labels(**self._names, protocol=protocol, code=str(code)).observe(seconds)

    def batch(self, rows: int, inference_seconds: float, queue_seconds: list[float]) -> None:
        self._batch.observe(rows)
        self._inference.observe(inference_seconds)
        for seconds in queue_seconds:
            self._queue.observe(seconds)

    def shed(self, reason: str) -> None:
        self._shed.labels(**self._names, reason=reason).inc()

    def answers(self, outputs: NDArray[Any]) -> None:
        """Count the predicted classes of a batch: (n, classes) scores, or (n, 1) logits for two classes."""
        if not self._labels:
            return
        single = outputs.shape[1] == 1
        best = (outputs[:, 0] > 0).astype(np.int64) if single else outputs.argmax(axis=1)
        for number, count in enumerate(np.bincount(best, minlength=len(self._labels)).tolist()):
            if count:
                self._labels[number].inc(count)

    def watch(self, depth: Callable[[], float], ready: Callable[[], bool]) -> None:
        """Where the gauges of the present moment come from."""
        self._depth.set_function(depth)
        self._ready.set_function(ready)

    def text(self) -> bytes:
        """All series in Prometheus' text format."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        gauge = Gauge(f"modelyard_{name}", help_text, ["model", "version"], registry=self._registry)
        return gauge.labels(**self._names)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"modelyard_{name}",
            help_text,
            ["model", "version"],
            buckets=buckets,
            registry=self._registry,
        )
        return histogram.labels(**self._names)
