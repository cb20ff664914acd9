"""The whole way on one page: each verb takes the project, makes sure of what it needs, and does one step.

::

    read → prepare → train → export → add → deploy          (``up`` is these in a row)

Every step is keyed by what goes into it, so a verb whose inputs are unchanged returns what is there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelyard.backends.source import code_digest
from modelyard.bundle.export import export as export_run
from modelyard.bundle.export import export_key
from modelyard.data.dataset import dataset_id
from modelyard.data.dataset import prepare as prepare_data
from modelyard.deployment.targets import BUILT_IN as TARGETS
from modelyard.deployment.targets.base import Target
from modelyard.engines import BUILT_IN as ENGINES
from modelyard.monitoring.prometheus import write_monitoring
from modelyard.serving.protocols import BUILT_IN as PROTOCOLS
from modelyard.spec.errors import NotFoundError, nearest
from modelyard.spec.plugins import load, table
from modelyard.spec.project import Project
from modelyard.spec.read import read_project
from modelyard.spec.records import AnyEvent, Bundle, Dataset, Deployment, ModelVersion, Run, Service
from modelyard.store import Store, open_store, registry
from modelyard.store.events import read_events
from modelyard.tasks import names as task_names
from modelyard.training.train import inputs_of, run_id
from modelyard.training.train import train as train_model

ProjectLike = Project | str | Path
Say = Callable[[str], None]
Observer = Callable[[AnyEvent], None]


def _quiet(_message: str) -> None:
    """Tell nobody."""


def _silent(_stage: "Stage") -> None:
    """Announce nothing."""


def read(
    path: str | Path = "yard.toml", overrides: Mapping[str, Any] | None = None, **train: Any
) -> Project:
    """Read a project file; ``read("yard.toml", {"data.color": "grey"}, epochs=3)``.

    Keyword arguments are fields of ``[train]``. Raises ProjectError with every mistake at once.
    """
    choices = {
        "task.type": task_names(),
        "train.engine": sorted(table("engines", ENGINES)),
        "serve.protocols": sorted(table("protocols", PROTOCOLS)),
        "deploy.target": sorted(table("targets", TARGETS)),
    }
    return read_project(path, {**(overrides or {}), **train}, choices=choices)


def open_project(
    project: ProjectLike, train: Mapping[str, Any] | None = None
) -> tuple[Project, Store]:
    """The project, read where it is given by its path, and its store."""
    opened = (
        project
        if isinstance(project, Project) and not train
        else read(_path(project), **(train or {}))
    )
    return opened, open_store(opened.store_folder)


def _path(project: ProjectLike) -> str | Path:
    return project.root if isinstance(project, Project) else project


def prepare(project: ProjectLike = "yard.toml", *, say: Say = _quiet) -> Dataset:
    """Check the data, split it and lay it out for training. Raises DataError."""
    opened, store = open_project(project)
    return prepare_data(opened, store, on_progress=say)


def train(
    project: ProjectLike = "yard.toml",
    *,
    observers: Sequence[Observer] = (),
    say: Say = _quiet,
    **fields: Any,
) -> Run:
    """Train on the project's workers; ``train("yard.toml", epochs=3)`` overrides fields of ``[train]``."""
    opened, store = open_project(project, fields)
    return train_model(
        opened, prepare_data(opened, store, on_progress=say), store, observers=observers
    )


def export(
    project: ProjectLike = "yard.toml", run: Run | None = None, *, say: Say = _quiet
) -> Bundle:
    """Make the bundle of ``run`` (default: the project's own, trained first where it is not)."""
    opened, store = open_project(project)
    finished = run or train(opened, say=say)
    dataset = prepare_data(opened, store, on_progress=say)
    return export_run(
        finished,
        dataset,
        store,
        name=opened.name,
        description=opened.project.description,
        root=opened.root,
        build=opened.model.build,
        args=dict(opened.model.args),
    )


def add(
    project: ProjectLike = "yard.toml",
    bundle: Bundle | None = None,
    *,
    aliases: Sequence[str] = ("latest",),
) -> ModelVersion:
    """Enter a bundle in the registry under the project's name; the same bundle keeps its version."""
    opened, store = open_project(project)
    made = bundle or export(opened)
    return registry.add(
        store,
        opened.name,
        made.digest,
        aliases=tuple(aliases),
        run=made.run,
        dataset=made.dataset,
        metrics=made.metrics,
    )


def deploy(project: ProjectLike = "yard.toml", version: ModelVersion | None = None) -> Deployment:
    """Bring the service up, or replace the version it serves; returns when the new one answers."""
    opened, store = open_project(project)
    chosen = version or add(opened)
    target = open_target(opened.deploy.target)
    folder = store.deployment_folder(opened.name)
    deployment = target.apply(folder, target.plan(_service(opened, store, chosen)))
    registry.set_alias(store, opened.name, "production", chosen.version)
    write_monitoring(deployment, folder)
    return deployment


def open_target(name: str) -> Target:
    """The deployment target called ``name``. Raises UsageError."""
    target: Target = load("targets", name, TARGETS)()
    return target


def _service(project: Project, store: Store, version: ModelVersion) -> Service:
    return Service(
        name=project.name,
        model=version.name,
        version=version.version,
        digest=version.digest,
        bundle_folder=str(registry.unpack(store, version.digest)),
        host=project.serve.host,
        port=project.serve.port,
        replicas=project.deploy.replicas,
        protocols=tuple(project.serve.protocols),
        max_batch=project.serve.max_batch,
        max_request_bytes=int(project.serve.max_request_mb * 1024 * 1024),
        timeout_seconds=project.serve.timeout_seconds,
    )


# --- the way: what is up to date, what is not, and why ---------------------------------------


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


def look(project: ProjectLike = "yard.toml") -> Way:
    """How far the project is on its way, without doing anything."""
    opened, store = open_project(project)
    way = Way()
    way.stages.extend(_look_along(opened, store, way))
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
    inputs = inputs_of(project, identifier, code_digest(project.root, project.model.build))
    run = store.read_or_none(store.run_folder(run_id(inputs)) / "run.json", Run)
    way.run = run if run and run.state == "complete" else None
    yield Stage(
        "train",
        way.run is not None,
        f"run {way.run.id}" if way.run else _why_train(store, project.name, inputs, run),
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


def _why_train(store: Store, name: str, inputs: Mapping[str, str], run: Run | None) -> str:
    """What is different from the newest run of this project, in the user's own field names."""
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
    if deployment.service != _service(project, store, version):
        return False, "its settings changed"
    if deployment.state != "ready":
        return False, f"is {deployment.state}"
    return True, deployment.url


def up(
    project: ProjectLike = "yard.toml",
    *,
    say: Say = _quiet,
    observers: Sequence[Observer] = (),
    dry_run: bool = False,
    on_stage: Callable[[Stage], None] = _silent,
) -> Way:
    """The whole way: data, training, bundle, registry, service. Only what is not current is done."""
    opened, store = open_project(project)
    way = look(opened)
    if dry_run or way.current:
        return way
    todo = {stage.name: stage for stage in way.stages}

    def begin(name: str) -> None:
        on_stage(todo[name])

    begin("data")
    way.dataset = prepare_data(opened, store, on_progress=say)
    begin("train")
    way.run = train_model(opened, way.dataset, store, observers=observers)
    begin("bundle")
    way.bundle = export(opened, way.run, say=say)
    begin("registry")
    way.version = add(opened, way.bundle)
    begin("service")
    way.deployment = deploy(opened, way.version)
    return way


# --- looking ---------------------------------------------------------------------------------


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
    close = nearest(identifier, [run.id for run in runs])
    hint = f"; did you mean {close!r}?" if close else ""
    raise NotFoundError(
        f"no run {identifier!r}{hint}" if identifier else "no runs yet",
        "`yard runs` lists them; `yard train` makes one",
    )


def write_run_report(store: Store, run: Run, path: Path | None = None) -> Path:
    """One HTML file with learning curves and confusion matrix. Raises MissingExtraError without matplotlib."""
    from modelyard.training.report import write_report

    dataset = store.read(store.dataset_folder(run.dataset) / "dataset.json", Dataset)
    target = path or Path(run.folder) / "report.html"
    write_report(run, dataset, read_events(Path(run.folder) / "events.jsonl"), target)
    return target


def list_deployments(store: Store, target: str = "local") -> list[Deployment]:
    """All deployments of the store, as they are now."""
    folders = sorted(path for path in (store.root / "deployments").glob("*") if path.is_dir())
    observed = (open_target(target).observe(folder) for folder in folders)
    return [item for item in observed if item is not None]
