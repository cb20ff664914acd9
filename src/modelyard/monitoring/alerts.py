"""What is worth waking somebody for: Prometheus' alert rules of one deployment, as plain data."""

from typing import Any

from modelyard.spec.records import Service

ERROR_RATIO = 0.05
P99_SECONDS = 1.0
RESTARTS = 3


def alert_rules(service: Service) -> dict[str, Any]:
    """The rule file. Thresholds are the constants above; each alert says what to do."""
    rules = [*_presence(service), *_quality(service.name)]
    return {"groups": [{"name": f"modelyard-{service.name}", "rules": rules}]}


def _presence(service: Service) -> list[dict[str, Any]]:
    name, on = service.name, f'deployment="{service.name}"'
    return [
        _rule(
            "ModelyardServiceDown",
            (f"up{{{on}}} == 0", "15s", "critical"),
            f"{name} does not answer",
            "`yard status` says why, `yard up` brings it back",
        ),
        _rule(
            "ModelyardReplicaMissing",
            (f"modelyard_replicas_ready{{{on}}} < {service.replicas}", "1m", "warning"),
            f"{name} has fewer than {service.replicas} replicas",
            "`yard logs` has what the missing one said last",
        ),
        _rule(
            "ModelyardReplicaRestarts",
            (
                f"sum(increase(modelyard_replica_restarts_total{{{on}}}[15m])) > {RESTARTS}",
                "0s",
                "warning",
            ),
            f"replicas of {name} are lost again and again",
            "`yard logs` has what they said last; memory is the usual cause",
        ),
    ]


def _quality(name: str) -> list[dict[str, Any]]:
    on = f'deployment="{name}"'
    errors = f'sum(rate(modelyard_gateway_requests_total{{{on},code=~"5.."}}[1m]))'
    requests = f"sum(rate(modelyard_gateway_requests_total{{{on}}}[1m]))"
    buckets = f"sum by (le) (rate(modelyard_gateway_request_duration_seconds_bucket{{{on}}}[5m]))"
    return [
        _rule(
            "ModelyardErrors",
            (f"{errors} / {requests} > {ERROR_RATIO}", "1m", "critical"),
            f"more than {ERROR_RATIO:.0%} of the requests to {name} fail",
            "`yard logs` has the errors; `yard status` the version that serves",
        ),
        _rule(
            "ModelyardSlow",
            (f"histogram_quantile(0.99, {buckets}) > {P99_SECONDS}", "2m", "warning"),
            f"one request in a hundred to {name} takes over {P99_SECONDS:g} s",
            "add replicas (deploy.replicas) or look for a larger input than usual",
        ),
        _rule(
            "ModelyardShedding",
            (f"sum(rate(modelyard_shed_total{{{on}}}[1m])) > 0", "1m", "warning"),
            f"{name} refuses requests because it has too many",
            "add replicas (deploy.replicas)",
        ),
    ]


def _rule(alert: str, condition: tuple[str, str, str], summary: str, mend: str) -> dict[str, Any]:
    """``condition``: the expression, how long it must hold, the severity."""
    expression, lasting, severity = condition
    return {
        "alert": alert,
        "expr": expression,
        "for": lasting,
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "description": mend},
    }
