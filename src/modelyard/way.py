"""How far a project is on its way: which stage is current, which is not, and why."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from modelyard.bundle.export import export_key
from modelyard.data.dataset import dataset_id
from modelyard.deployment.targets import BUILT_IN as TARGETS
from modelyard.deployment.targets.base import Target
from modelyard.spec.errors import NotFoundError, did_you_mean
from modelyard.spec.plugins import load
from modelyard.spec.project import Project
from modelyard.spec.records import Bundle, Dataset, Deployment, ModelVersion, Run, Service
from modelyard.store import Store, registry
from modelyard.training import budget
from modelyard.training.inputs import code_of, inputs_of, run_id


@dataclass(frozen=True)
class Stage:
    """One stage of the way as it stands."""

    name: str
    current: bool
    """True where nothing has to be done."""
    reason: str


@dataclass
class Way:
    """What ``up`` found and made."""

    stages: list[Stage] = field(default_factory=list)
    dataset: Dataset | None = None
    run: Run | None = None
    bundle: Bundle | None = None
    version: ModelVersion | None = None
    deployment: Deployment | None = None

    @property
    def current(self) -> bool:
        return all(stage.current for stage in self.stages)

    def _repr_html_(self) -> str:
        records = (self.dataset, self.run, self.bundle, self.version, self.deployment)
        return "".join(record._repr_html_() for record in records if record)


def look(project: Project, store: Store) -> Way:
    """How far the project is on its way, without doing anything."""
    way = Way()
    way.stages.extend(_look_along(project, store, way))
    return way


def _look_along(project: Project, store: Store, way: Way) -> Iterator[Stage]:
    """The stages in order; after the first that is not current, all the others follow it."""
    identifier = dataset_id(project, store)
    way.dataset = store.read_or_none(store.dataset_folder(identifier) / "dataset.json", Dataset)
    yield Stage(
        "data",
        way.dataset is not None,
        f"dataset {identifier}" if way.dataset else "new data or settings",
    )
    inputs = inputs_of(project, identifier, code_of(project))
    run = store.read_or_none(store.run_folder(run_id(inputs)) / "run.json", Run)
    more = run is not None and budget.goes_on(project.train, run.reason, run.step, run.spent)
    way.run = run if run and run.state == "complete" and not more else None
    yield Stage(
        "train",
        way.run is not None,
        _finished(way.run) if way.run else _why_train(store, project.name, inputs, run),
    )
    if way.run is None:
        yield from (
            Stage(name, False, "follows training") for name in ("bundle", "registry", "service")
        )
        return
    way.bundle = store.read_or_none(store.export_record(export_key(way.run)), Bundle)
    yield Stage(
        "bundle",
        way.bundle is not None,
        way.bundle.digest[:19] if way.bundle else "not exported yet",
    )
    way.version = _version_of(store, project.name, way.bundle)
    yield Stage(
        "registry",
        way.version is not None,
        way.version.reference if way.version else "not in the registry yet",
    )
    way.deployment = open_target(project.deploy.target).observe(
        store.deployment_folder(project.name)
    )
    current, reason = _service_state(project, store, way)
    yield Stage("service", current, reason)


def _finished(run: Run) -> str:
    ended = budget.explain(run)
    return f"run {run.id}, ended {ended}" if ended else f"run {run.id}"


def _why_train(store: Store, name: str, inputs: Mapping[str, str], run: Run | None) -> str:
    """What is different from the newest run of this project, in the user's own field names."""
    if run is not None and run.state == "complete":
        return f"run {run.id} was ended by its {run.reason} at step {run.step}; the budget is larger now"
    if run is not None:
        return f"run {run.id} is {run.state}: it goes on from its last checkpoint"
    earlier = [item for item in list_runs(store) if item.project == name]
    if not earlier:
        return "never trained"
    before = earlier[0].inputs
    changed = [key for key in sorted({*before, *inputs}) if before.get(key) != inputs.get(key)]
    words = [_change(key, before.get(key, "unset"), inputs.get(key, "unset")) for key in changed]
    return (
        "changed: "
        + ", ".join(words[:4])
        + (f" and {len(words) - 4} more" if len(words) > 4 else "")
    )


def _change(key: str, before: str, after: str) -> str:
    return key if max(len(before), len(after)) > 24 else f"{key} {before} → {after}"


def _version_of(store: Store, name: str, bundle: Bundle | None) -> ModelVersion | None:
    if bundle is None:
        return None
    return next(
        (item for item in registry.list_versions(store, name) if item.digest == bundle.digest), None
    )


def _service_state(project: Project, store: Store, way: Way) -> tuple[bool, str]:
    deployment, version = way.deployment, way.version
    if deployment is None or deployment.state == "stopped":
        return False, "not running"
    if version is None or deployment.service.digest != version.digest:
        return False, f"serves {deployment.service.model}:{deployment.service.version}"
    if deployment.service != service_of(project, store, version):
        return False, "its settings changed"
    if deployment.state != "ready":
        return False, f"is {deployment.state}"
    return True, deployment.url


def open_target(name: str) -> Target:
    """The deployment target called ``name``. Raises UsageError."""
    target: Target = load("targets", name, TARGETS)()
    return target


def service_of(project: Project, store: Store, version: ModelVersion) -> Service:
    return Service(
        name=project.name,
        model=version.name,
        version=version.version,
        digest=version.digest,
        bundle_folder=str(store.bundle_folder(version.digest)),
        host=project.serve.host,
        port=project.serve.port,
        replicas=project.deploy.replicas,
        protocols=tuple(project.serve.protocols),
        max_batch=project.serve.max_batch,
        max_request_bytes=int(project.serve.max_request_mb * 1024 * 1024),
        timeout_seconds=project.serve.timeout_seconds,
    )


def list_runs(store: Store) -> list[Run]:
    """All runs of the store, newest first; a folder without a readable record is left out."""
    folders = (store.root / "runs").glob("*/run.json")
    return sorted(
        (store.read(path, Run) for path in folders), key=lambda run: run.created, reverse=True
    )


def find_run(store: Store, identifier: str = "") -> Run:
    """The run whose id begins with ``identifier``; the newest one where that is empty. Raises NotFoundError."""
    runs = list_runs(store)
    found = [run for run in runs if run.id.startswith(identifier)]
    exact = [run for run in found if run.id == identifier]
    if exact or found[:1]:
        return (exact or found)[0]
    hint = did_you_mean(identifier, [run.id for run in runs])
    raise NotFoundError(
        f"no run {identifier!r}{hint}" if identifier else "no runs yet",
        "`yard runs` lists them; `yard train` makes one",
    )
