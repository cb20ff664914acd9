"""The files that let Prometheus and Grafana see a deployment: scraping, alerts, datasource, dashboard.

::

    monitoring/prometheus.yml                            prometheus --config.file=…
    monitoring/alerts.yml
    monitoring/grafana/provisioning/datasources/…        GF_PATHS_PROVISIONING=…/provisioning
    monitoring/grafana/provisioning/dashboards/…
    monitoring/grafana/dashboards/modelyard.json
"""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modelyard.monitoring.alerts import alert_rules
from modelyard.monitoring.dashboards import DATASOURCE_UID, dashboard
from modelyard.monitoring.yaml_text import to_yaml
from modelyard.spec.errors import from_os_error
from modelyard.spec.records import Deployment
from modelyard.store.files import write_atomic

FOLDER = "monitoring"
JOB = "modelyard"
SCRAPE_SECONDS = 5
PROMETHEUS_URL = "http://127.0.0.1:9090"
_COMMENT = "Written by Modelyard at each deployment; a change here is lost at the next one."


def scrape_config(
    deployment: Deployment, *, interval_seconds: int = SCRAPE_SECONDS
) -> dict[str, Any]:
    """Prometheus' configuration: one target, the gateway, which answers for all replicas."""
    service = deployment.service
    labels = {"deployment": deployment.name, "target": deployment.target}
    return {
        "global": {
            "scrape_interval": f"{interval_seconds}s",
            "scrape_timeout": f"{min(interval_seconds, 4)}s",
            "evaluation_interval": f"{interval_seconds}s",
        },
        "rule_files": ["alerts.yml"],
        "scrape_configs": [
            {
                "job_name": JOB,
                "metrics_path": "/metrics",
                "scheme": urlsplit(deployment.url).scheme or "http",
                "static_configs": [
                    {
                        "targets": [_address(deployment)],
                        "labels": labels | {"service": service.name},
                    }
                ],
            }
        ],
    }


def datasource_provision() -> dict[str, Any]:
    """Grafana's datasource, with the fixed uid that the dashboard asks for."""
    return {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "Modelyard Prometheus",
                "uid": DATASOURCE_UID,
                "type": "prometheus",
                "access": "proxy",
                "url": PROMETHEUS_URL,
                "isDefault": True,
                "editable": False,
                "jsonData": {"timeInterval": f"{SCRAPE_SECONDS}s"},
            }
        ],
    }


def dashboard_provision(folder: Path) -> dict[str, Any]:
    """Where Grafana finds the dashboards: ``folder``, an absolute path."""
    return {
        "apiVersion": 1,
        "providers": [
            {
                "name": "modelyard",
                "orgId": 1,
                "folder": "Modelyard",
                "type": "file",
                "disableDeletion": False,
                "updateIntervalSeconds": 10,
                "allowUiUpdates": True,
                "options": {"path": str(folder), "foldersFromFilesStructure": False},
            }
        ],
    }


def write_monitoring(deployment: Deployment, folder: Path) -> dict[str, Path]:
    """Write ``folder/monitoring`` and return its files by what they are.

    Keys: ``prometheus``, ``alerts``, ``datasource``, ``provider``, ``dashboard``. Raises StoreError.
    """
    root = folder.absolute() / FOLDER
    grafana = root / "grafana"
    provisioning = grafana / "provisioning"
    board = json.dumps(dashboard(deployment.service), indent=2) + "\n"
    provider = dashboard_provision(grafana / "dashboards")
    texts = {
        "prometheus": (root / "prometheus.yml", to_yaml(scrape_config(deployment), _COMMENT)),
        "alerts": (root / "alerts.yml", to_yaml(alert_rules(deployment.service), _COMMENT)),
        "datasource": (
            provisioning / "datasources" / "modelyard.yaml",
            to_yaml(datasource_provision(), _COMMENT),
        ),
        "provider": (
            provisioning / "dashboards" / "modelyard.yaml",
            to_yaml(provider, _COMMENT),
        ),
        "dashboard": (grafana / "dashboards" / "modelyard.json", board),
    }
    try:
        for path, text in texts.values():
            write_atomic(path, text.encode())
    except OSError as error:
        raise from_os_error(error) from error
    return {name: path for name, (path, _) in texts.items()}


def _address(deployment: Deployment) -> str:
    return urlsplit(deployment.url).netloc
