"""The proof that a target keeps its contract; third parties run it on theirs.

::

    class TestMine(TargetContract):
        @pytest.fixture
        def target(self): return Mine()

        @pytest.fixture
        def service(self, tmp_path): return Service(...)      # a bundle that the target can serve
"""

import json
import time
import urllib.error
import urllib.request
from pathlib import Path

import msgspec

from modelyard.deployment.targets.base import Target
from modelyard.spec.errors import DeploymentError
from modelyard.spec.records import Deployment, Service


def ask(url: str, *, seconds: float = 10.0) -> int:
    """The status of a GET; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as response:  # noqa: S310 - our own service
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


class TargetContract:
    """Inherit, give the fixtures ``target`` and ``service``; each test takes down what it brought up."""

    def test_a_plan_is_pure_and_can_be_printed(self, target: Target, service: Service) -> None:
        plan = target.plan(service)
        assert plan == target.plan(service)
        assert json.loads(json.dumps(plan)) == plan

    def test_up_answers_and_down_leaves_nothing(
        self, target: Target, service: Service, tmp_path: Path
    ) -> None:
        folder = tmp_path / "deployment"
        assert target.observe(folder) is None
        try:
            up = target.apply(folder, target.plan(service))
            assert (up.state, up.name, up.target) == ("ready", service.name, target.name)
            assert len(up.replicas) == service.replicas
            assert ask(f"{up.url}/v2/health/ready") == 200
            assert target.logs(folder)
        finally:
            target.remove(folder)
        assert ask(f"{up.url}/v2/health/ready") == 0
        down = target.observe(folder)
        assert down is None or down.state == "stopped"
        target.remove(folder)  # a second time is no error

    def test_applying_what_is_already_so_changes_nothing(
        self, target: Target, service: Service, tmp_path: Path
    ) -> None:
        folder = tmp_path / "deployment"
        try:
            first = target.apply(folder, target.plan(service))
            second = target.apply(folder, target.plan(service))
            assert _who(first) == _who(second)
        finally:
            target.remove(folder)

    def test_a_version_that_does_not_come_up_leaves_the_one_before(
        self, target: Target, service: Service, tmp_path: Path
    ) -> None:
        folder = tmp_path / "deployment"
        bad = msgspec.structs.replace(
            service, version=service.version + 1, bundle_folder=str(tmp_path / "no-such-bundle")
        )
        try:
            first = target.apply(folder, target.plan(service))
            try:
                target.apply(folder, target.plan(bad), timeout=30.0)
            except DeploymentError as error:
                assert error.mend
            else:
                raise AssertionError("a bundle that does not exist was brought up")
            after = target.observe(folder)
            assert after is not None
            assert _who(after) == _who(first)
            assert ask(f"{first.url}/v2/health/ready") == 200
        finally:
            target.remove(folder)

    def test_a_new_version_takes_over_at_the_same_address(
        self, target: Target, service: Service, tmp_path: Path
    ) -> None:
        folder = tmp_path / "deployment"
        newer = msgspec.structs.replace(service, version=service.version + 1)
        try:
            first = target.apply(folder, target.plan(service))
            second = target.apply(folder, target.plan(newer))
            assert second.url == first.url
            assert {replica.version for replica in second.replicas} == {newer.version}
            deadline = time.monotonic() + 10
            while ask(f"{second.url}/v2/health/ready") != 200:
                assert time.monotonic() < deadline
        finally:
            target.remove(folder)


def _who(deployment: Deployment) -> list[tuple[int, int | None, int]]:
    return [(one.index, one.pid, one.version) for one in deployment.replicas]
