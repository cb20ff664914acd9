"""The dashboard as Grafana needs it; that every panel has data is proved with a real Prometheus."""

import json

import pytest

from modelyard.monitoring.dashboards import DATASOURCE_UID, dashboard, panel_expressions
from modelyard.spec.records import Service


def board(name: str = "digits") -> dict[str, object]:
    service = Service(name=name, model=name, version=1, digest="sha256:1", bundle_folder="/x")
    return dashboard(service)


def test_it_is_plain_json() -> None:
    assert json.loads(json.dumps(board())) == board()


def test_panels_stand_side_by_side_and_never_overlap() -> None:
    cells = set()
    for panel in board()["panels"]:  # type: ignore[attr-defined]
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        covered = {
            (grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])
        }
        assert cells.isdisjoint(covered)
        cells |= covered


def test_panels_and_targets_are_numbered_once_and_use_the_provisioned_datasource() -> None:
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)  # type: ignore[attr-defined,arg-type]
    for panel in panels:  # type: ignore[attr-defined]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {DATASOURCE_UID}


def test_every_expression_is_about_this_deployment_alone() -> None:
    for expression in panel_expressions(board()):
        assert expression.count("{") == expression.count('{deployment="digits"')


@pytest.mark.parametrize("name", ["digits", "a" * 100])
def test_the_uid_fits_grafana(name: str) -> None:
    assert len(str(board(name)["uid"])) <= 40
    assert board(name)["uid"] == board(name)["uid"]
    assert board("a" * 100)["uid"] != board("a" * 101)["uid"]
