"""What the gateway itself measures: requests by code, their duration, retries, replicas ready and restarted, pages left out."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass
class Outcome:
    """Filled in by whoever answers a request; 499 is a client that left, 500 a defect."""

    code: int = 500


class _Replicas(Collector):
    """What the supervisor knows, asked for when the page is made."""

    def __init__(self, ready: Callable[[], int], restarts: Callable[[], Mapping[int, int]]) -> None:
        self._ready, self._restarts = ready, restarts

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("modelyard_replicas_ready", "Replicas that answer.", self._ready())
        family = CounterMetricFamily(
            "modelyard_replica_restarts", "Times a lost replica was replaced.", labels=["replica"]
        )
        for replica, restarts in self._restarts().items():
            family.add_metric([str(replica)], restarts)
        yield family


class GatewayMetrics:
    """Counters since this supervisor started."""

    def __init__(
        self, ready: Callable[[], int] = lambda: 0, restarts: Callable[[], Mapping[int, int]] = dict
    ) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "modelyard_gateway_requests", "Requests answered, by code.", ["code"], registry=registry
        )
        self._requests.labels(code="200")  # there from the beginning, so that a rate has a start
        ProcessCollector(namespace="modelyard_gateway", registry=registry)
        self._seconds = Histogram(
            "modelyard_gateway_request_duration_seconds",
            "From a request's arrival at the gateway to its answer.",
            buckets=_BUCKETS,
            registry=registry,
        )
        self.retries = Counter(
            "modelyard_gateway_retries",
            "Requests sent again because their replica broke off.",
            registry=registry,
        )
        self._left_out = Counter(
            "modelyard_gateway_metrics_pages_left_out",
            "Metrics pages of a ready replica that are missing here, by why: no answer, unreadable.",
            ["replica", "reason"],
            registry=registry,
        )
        self._in_flight = Gauge(
            "modelyard_gateway_in_flight_requests", "Requests being answered.", registry=registry
        )
        registry.register(_Replicas(ready, restarts))

    @contextlib.contextmanager
    def timed(self) -> Iterator[Outcome]:
        """Count and time one request; its code is what the block leaves in the outcome."""
        outcome, start = Outcome(), time.monotonic()
        self._in_flight.inc()
        try:
            yield outcome
        finally:
            self._in_flight.dec()
            self._requests.labels(code=str(outcome.code)).inc()
            self._seconds.observe(time.monotonic() - start)

    def leave_out(self, replica: str, reason: str) -> None:
        """Count a page of a replica that cannot stand in the merged one, so that its absence shows."""
        self._left_out.labels(replica=replica, reason=reason).inc()

    def page(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)
