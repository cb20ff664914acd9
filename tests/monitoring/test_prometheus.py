"""Real Prometheus on a real deployment: the files are valid, and every panel of the dashboard has data."""

import json
import math
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelyard.deployment.targets.local import Local
from modelyard.monitoring.dashboards import DATASOURCE_UID, panel_expressions
from modelyard.monitoring.prometheus import write_monitoring
from modelyard.spec.errors import StoreError
from modelyard.spec.records import Deployment, Service

Find = Callable[[str], str]


def deployment(url: str = "http://127.0.0.1:8080") -> Deployment:
    service = Service(name="toy", model="toy", version=1, digest="sha256:1", bundle_folder="/x")
    return Deployment(name="toy", target="local", state="ready", url=url, service=service)


@pytest.mark.service
def test_the_files_are_valid_for_prometheus(tmp_path: Path, require_program: Find) -> None:
    files = write_monitoring(deployment(), tmp_path)
    for kind, file in (("config", "prometheus"), ("rules", "alerts")):
        done = subprocess.run(
            [require_program("promtool"), "check", kind, str(files[file])],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "6 rules found" in done.stdout


def test_grafana_finds_the_dashboard_and_the_dashboard_its_datasource(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML, the oracle, is not installed")
    files = write_monitoring(deployment(), tmp_path)
    provider = yaml.safe_load(files["provider"].read_text())["providers"][0]
    assert Path(provider["options"]["path"]) == files["dashboard"].parent
    source = yaml.safe_load(files["datasource"].read_text())["datasources"][0]
    assert source["uid"] == DATASOURCE_UID
    board = json.loads(files["dashboard"].read_text())
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {DATASOURCE_UID}


def test_writing_again_gives_the_same_files(tmp_path: Path) -> None:
    first = {
        name: path.read_bytes() for name, path in write_monitoring(deployment(), tmp_path).items()
    }
    second = write_monitoring(deployment(), tmp_path)
    assert {name: path.read_bytes() for name, path in second.items()} == first


def test_a_place_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "monitoring").write_text("a file where the folder should be")
    with pytest.raises(StoreError):
        write_monitoring(deployment(), tmp_path)


@pytest.fixture
def up(nothing_left: Path, small_bundle: Any) -> Iterator[Deployment]:
    small_bundle(nothing_left / "bundle")
    target = Local(cores=2)
    service = Service(
        name="toy",
        model="toy",
        version=3,
        digest="sha256:abc",
        bundle_folder=str(nothing_left / "bundle"),
        port=0,
    )
    folder = nothing_left / "deployment"
    yield target.apply(folder, target.plan(service))
    target.remove(folder)


@pytest.fixture
def prometheus(up: Deployment, tmp_path: Path, require_program: Find) -> Iterator[str]:
    """Prometheus with the generated files, scraping each second instead of every fifth."""
    program = require_program("prometheus")
    config = write_monitoring(up, tmp_path)["prometheus"]
    text = config.read_text()
    config.write_text(text.replace('"5s"', '"1s"').replace('"4s"', '"1s"'))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={config}",
                f"--web.listen-address={address}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            ],
            stdout=log,
            stderr=log,
        )
    yield f"http://{address}"
    process.terminate()
    assert process.wait(20) == 0, (tmp_path / "prometheus.log").read_text()[-2000:]


def query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    words = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"{prometheus}/api/v1/query?{words}", timeout=10) as response:
            result: list[dict[str, Any]] = json.load(response)["data"]["result"]
    except ConnectionError:
        return []
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionError):
            return []
        raise
    return [one for one in result if not math.isnan(float(one["value"][1]))]


def wait_for_data(prometheus: str, expressions: list[str], meanwhile: Callable[[], None]) -> None:
    deadline = time.monotonic() + 60
    while expressions:
        meanwhile()
        expressions = [one for one in expressions if not query(prometheus, one)]
        assert time.monotonic() < deadline, f"no data for {expressions}"
        time.sleep(0.3)


def predict(url: str, row: list[float]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/predict", json.dumps(row).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


@pytest.mark.slow
@pytest.mark.service
def test_every_panel_has_data_and_the_numbers_are_those_of_the_requests(
    up: Deployment, prometheus: str
) -> None:
    on = '{deployment="toy"}'
    wait_for_data(prometheus, [f"modelyard_replicas_ready{on} == 2"], lambda: None)
    for _ in range(5):
        predict(up.url, [9, 0, 0, 0])
    predict(up.url, [0, 9, 0, 0])
    board = json.loads(
        (Path(up.folder).parent / "monitoring/grafana/dashboards/modelyard.json").read_text()
    )
    # A handful of requests is enough: none is sent while the panels are asked for.
    wait_for_data(prometheus, panel_expressions(board), lambda: None)
    counted = {
        f'sum(modelyard_gateway_requests_total{on[:-1]},code="200"}})': 6,
        f'sum(modelyard_predictions_total{on[:-1]},label="a"}})': 5,
        f'sum(modelyard_predictions_total{on[:-1]},label="b"}})': 1,
        f"count(modelyard_model_info{on[:-1]},version='3',digest='sha256:abc'}})": 2,
        f"up{on}": 1,
    }
    for expression, number in counted.items():
        wait_for_data(prometheus, [f"{expression} == {number}"], lambda: None)


@pytest.mark.service
def test_the_alert_fires_when_the_service_is_gone(up: Deployment, prometheus: str) -> None:
    wait_for_data(prometheus, ['up{deployment="toy"} == 1'], lambda: None)
    Local().remove(Path(up.folder))
    wait_for_data(prometheus, ['ALERTS{alertname="ModelyardServiceDown"}'], lambda: None)
