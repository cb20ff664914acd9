"""The Grafana dashboard of one deployment, as plain data: what comes in, what goes out, what it costs.

Windows are fixed ([1m] for rates, [5m] for quantiles) and not Grafana's variables, so that every
expression can be asked of Prometheus as it stands; a test does.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from modelyard.spec.records import Service

DATASOURCE_UID = "modelyard-prometheus"
_SCHEMA_VERSION = 39
_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 3


@dataclass(frozen=True)
class _Panel:
    title: str
    description: str
    targets: tuple[tuple[str, str], ...]
    """Expression and legend."""
    unit: str = "short"
    kind: str = "timeseries"


def dashboard(service: Service) -> dict[str, Any]:
    """Grafana's JSON model; the datasource is the one that is provisioned beside it."""
    panels = [*_traffic(_Series(service.name)), *_work(_Series(service.name))]
    panels += _machine(_Series(service.name))
    return {
        "uid": _uid(service.name),
        "title": f"Modelyard: {service.name}",
        "tags": ["modelyard"],
        "schemaVersion": _SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": []},
        "annotations": {"list": []},
        "panels": [_as_json(number, panel) for number, panel in enumerate(panels)],
    }


def panel_expressions(dashboard: dict[str, Any]) -> list[str]:
    """Every expression of every panel, in order."""
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


class _Series:
    """Expressions over the series of one deployment."""

    def __init__(self, name: str) -> None:
        self._on = f'deployment="{name}"'

    def all(self, metric: str, **labels: str) -> str:
        more = "".join(f',{key}=~"{pattern}"' for key, pattern in labels.items())
        return f"{metric}{{{self._on}{more}}}"

    def per_second(self, metric: str, by: str = "", **labels: str) -> str:
        by = f" by ({by}) " if by else ""
        return f"sum{by}(rate({self.all(metric, **labels)}[1m]))"

    def quantile(self, q: float, metric: str) -> str:
        return f"histogram_quantile({q}, sum by (le) (rate({self.all(f'{metric}_bucket')}[5m])))"

    def mean(self, metric: str) -> str:
        total, count = self.all(f"{metric}_sum"), self.all(f"{metric}_count")
        return f"sum(rate({total}[5m])) / sum(rate({count}[5m]))"

    def quantiles(self, metric: str) -> tuple[tuple[str, str], ...]:
        return tuple((self.quantile(q, metric), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99))


def _traffic(series: _Series) -> list[_Panel]:
    requests = "modelyard_gateway_requests_total"
    failed = f"({series.per_second(requests, code='5..')} or vector(0))"
    return [
        _Panel(
            "Requests",
            "Answered by the gateway, by code.",
            ((series.per_second(requests, by="code"), "{{code}}"),),
            "reqps",
        ),
        _Panel(
            "Error ratio",
            "Share of answers with a 5xx code; 0 where there is no traffic.",
            ((f"{failed} / clamp_min({series.per_second(requests)}, 1e-9)", "errors"),),
            "percentunit",
        ),
        _Panel(
            "Latency",
            "From a request's arrival at the gateway to its answer; a gap where there is no traffic.",
            series.quantiles("modelyard_gateway_request_duration_seconds"),
            "s",
        ),
        _Panel(
            "In flight",
            "Requests being answered, and rows that wait for inference.",
            (
                (series.all("modelyard_gateway_in_flight_requests"), "requests at the gateway"),
                (f"sum({series.all('modelyard_inflight_requests')})", "requests in replicas"),
                (f"sum({series.all('modelyard_queue_depth')})", "rows waiting"),
            ),
        ),
        _Panel(
            "Refused and retried",
            "Refused because they could not be answered in time, by reason; sent again because a replica broke off.",
            (
                (series.per_second("modelyard_shed_total", by="reason"), "refused: {{reason}}"),
                (series.per_second("modelyard_gateway_retries_total"), "retried"),
            ),
            "reqps",
        ),
    ]


def _work(series: _Series) -> list[_Panel]:
    predictions = "modelyard_predictions_total"
    # A regression predicts no labels; the panel then shows one line at nought.
    no_labels = f"(vector(0) unless on () {series.all(predictions)})"
    return [
        _Panel(
            "Predictions by label",
            "What the model says; a sudden change of the mix is the first sign of drift.",
            ((f"{series.per_second(predictions, by='label')} or {no_labels}", "{{label}}"),),
            "cps",
        ),
        _Panel(
            "Queue time",
            "From admission to the start of inference.",
            series.quantiles("modelyard_queue_duration_seconds"),
            "s",
        ),
        _Panel(
            "Inference time",
            "One call of the model.",
            series.quantiles("modelyard_inference_duration_seconds"),
            "s",
        ),
        _Panel(
            "Batch size",
            "Rows that were inferred together.",
            (
                (series.mean("modelyard_batch_size"), "mean"),
                (series.quantile(0.95, "modelyard_batch_size"), "p95"),
            ),
        ),
    ]


def _machine(series: _Series) -> list[_Panel]:
    cpu, memory = "process_cpu_seconds_total", "process_resident_memory_bytes"
    restarts = series.all("modelyard_replica_restarts_total")
    info = series.all("modelyard_model_info")
    return [
        _Panel(
            "Replicas ready",
            "Those that the gateway sends requests to.",
            ((series.all("modelyard_replicas_ready"), "ready"),),
            kind="stat",
        ),
        _Panel(
            "Restarts",
            "Lost replicas that were replaced since the supervisor started.",
            ((f"sum({restarts}) or vector(0)", "restarts"),),
            kind="stat",
        ),
        _Panel(
            "Model",
            "Which version answers, and how many replicas of it.",
            ((f"count by (model, version, digest) ({info})", "{{model}}:{{version}} {{digest}}"),),
            kind="stat",
        ),
        _Panel(
            "CPU",
            "Cores in use.",
            (
                (series.per_second(cpu, by="replica"), "replica {{replica}}"),
                (series.per_second(f"modelyard_gateway_{cpu}"), "gateway"),
            ),
        ),
        _Panel(
            "Memory",
            "Resident memory.",
            (
                (f"sum by (replica) ({series.all(memory)})", "replica {{replica}}"),
                (series.all(f"modelyard_gateway_{memory}"), "gateway"),
            ),
            "bytes",
        ),
    ]


def _as_json(number: int, panel: _Panel) -> dict[str, Any]:
    datasource = {"type": "prometheus", "uid": DATASOURCE_UID}
    row, column = divmod(number, _COLUMNS)
    return {
        "id": number + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": datasource,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"textMode": "value_and_name"} if panel.kind == "stat" else {},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": datasource,
                "expr": expression,
                "legendFormat": legend,
                "range": True,
            }
            for index, (expression, legend) in enumerate(panel.targets)
        ],
    }


def _uid(name: str) -> str:
    """Grafana takes at most 40 characters; a longer name is told apart by a digest."""
    uid = f"modelyard-{name}"
    return uid if len(uid) <= 40 else f"{uid[:31]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
