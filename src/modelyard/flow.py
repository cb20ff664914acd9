"""The whole way on one page: each verb takes the project, makes sure of what it needs, and does one step.

::

    read → prepare → train → export → add → deploy          (``up`` is these in a row)

Every step is keyed by what goes into it, so a verb whose inputs are unchanged returns what is there.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelyard.bundle.export import Adapting
from modelyard.bundle.export import export as export_run
from modelyard.data.dataset import prepare as prepare_data
from modelyard.data.sources import BUILT_IN as SOURCES
from modelyard.deployment.targets import BUILT_IN as TARGETS
from modelyard.engines import BUILT_IN as ENGINES
from modelyard.monitoring.prometheus import write_monitoring
from modelyard.serving.protocols import BUILT_IN as PROTOCOLS
from modelyard.spec.errors import Mistake, ProjectError, nearest
from modelyard.spec.plugins import table
from modelyard.spec.project import Project
from modelyard.spec.read import field_names, read_project
from modelyard.spec.records import AnyEvent, Bundle, Dataset, Deployment, ModelVersion, Proof, Run
from modelyard.store import Store, open_store, registry
from modelyard.store.events import read_events
from modelyard.tasks import names as task_names
from modelyard.tasks import open_task
from modelyard.training.inputs import is_input
from modelyard.training.optimizer import adapters_of
from modelyard.training.rate_finder import HIGH, LOW, STEPS, RateCurve
from modelyard.training.rate_finder import find_rate as search_rate
from modelyard.training.start_weights import find_start
from modelyard.training.train import train as train_model
from modelyard.training.tuning.search import Study, Trial, search
from modelyard.way import Stage, Way, look, open_target, service_of

ProjectLike = Project | str | Path
Say = Callable[[str], None]
Observer = Callable[[AnyEvent], None]


def _quiet(_message: str) -> None:
    """Tell nobody."""


def _silent(_fact: object) -> None:
    """Announce nothing."""


def read(
    path: str | Path = "yard.toml", overrides: Mapping[str, Any] | None = None, **train: Any
) -> Project:
    """Read a project file; ``read("yard.toml", {"data.color": "grey"}, epochs=3)``.

    Keyword arguments are fields of ``[train]``. Raises ProjectError with every mistake at once.
    """
    choices = {
        "data.source": sorted(set(table("sources", SOURCES)) - {"arrays"}),
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


def verify_resume(
    project: ProjectLike = "yard.toml",
    *,
    steps: int = 20,
    observers: Sequence[Observer] = (),
    say: Say = _quiet,
    **fields: Any,
) -> Proof:
    """Train a few steps unbroken, and again with a SIGKILL and a resume, and compare; kept on the run."""
    from modelyard.training.proof import verify_resume as verify

    opened, store = open_project(project, fields)
    dataset = prepare_data(opened, store, on_progress=say)
    return verify(opened, dataset, store, steps=steps, observers=observers)


def find_rate(
    project: ProjectLike = "yard.toml",
    *,
    low: float = LOW,
    high: float = HIGH,
    steps: int = STEPS,
    say: Say = _quiet,
    **fields: Any,
) -> RateCurve:
    """Try learning rates from ``low`` to ``high``, one step each, and suggest one; nothing of it stays."""
    opened, store = open_project(project, fields)
    dataset = prepare_data(opened, store, on_progress=say)
    return search_rate(opened, dataset, store, low=low, high=high, steps=steps)


def tune(
    project: ProjectLike = "yard.toml", *, on_trial: Callable[[Trial], None] = _silent
) -> Study:
    """Search ``[tune] space``: each trial is a run; the same call again finds finished trials done."""
    opened, store = open_project(project)
    dataset = prepare_data(opened, store)
    metric = opened.tune.metric or opened.train.metric
    if metric == "loss" and (changed := [n for n in opened.tune.space if n.startswith("task.")]):
        raise ProjectError(
            [
                Mistake(
                    "tune.metric",
                    f"'loss' itself changes with {changed[0]}: its values cannot be compared",
                    "a metric that no option changes: log_loss, accuracy, mae, …",
                    "",
                    "yard.toml",
                )
            ]
        )

    def try_fields(fields: Mapping[str, Any]) -> Run:
        return train_model(_with_fields(opened, fields), dataset, store)

    higher_is_better = open_task(dataset.task).higher_is_better(metric)
    return search(
        opened,
        higher_is_better=higher_is_better,
        metric=metric,
        try_fields=try_fields,
        on_trial=on_trial,
    )


def _with_fields(project: Project, fields: Mapping[str, Any]) -> Project:
    """The same project with some dotted fields replaced. Raises ProjectError for a field that does not exist."""
    if wrong := [name for name in fields if not is_input(name)]:
        raise ProjectError(
            [
                Mistake(
                    f"tune.space.{wrong[0]}",
                    "cannot be searched",
                    "a field of train, model or task that changes the result",
                    "",
                    "yard.toml",
                )
            ]
        )
    content = project.model_dump(mode="json")
    for name, value in fields.items():
        *parents, last = name.split(".")
        table = content
        for parent in parents:
            table = table[parent] if isinstance(table.get(parent), dict) else {}
        if last not in table and parents != ["model", "args"]:
            raise ProjectError(
                [
                    Mistake(
                        f"tune.space.{name}",
                        "unknown field",
                        "a field of yard.toml",
                        nearest(name, field_names()),
                        "yard.toml",
                    )
                ]
            )
        table[last] = value
    return Project.model_validate({**content, "root": project.root})


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
        build=opened.model.full_name,
        args=dict(opened.model.args),
        adapting=_adapting(opened),
    )


def _adapting(project: Project) -> Adapting | None:
    if project.train.lora is None:
        return None
    start = find_start(project)
    lora = adapters_of(project.train, start)
    return Adapting(lora, start) if lora else None


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
    registry.unpack(store, chosen.digest)  # what the replicas read
    deployment = target.apply(folder, target.plan(service_of(opened, store, chosen)))
    registry.set_alias(store, opened.name, "production", chosen.version)
    write_monitoring(deployment, folder)
    return deployment


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
    way = look(opened, store)
    if dry_run or way.current:
        return way
    todo = {stage.name: stage for stage in way.stages}
    target = open_target(opened.deploy.target)
    target.check(store.deployment_folder(opened.name), opened.serve.host, opened.serve.port)

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


def write_run_report(store: Store, run: Run, path: Path | None = None) -> Path:
    """One HTML file with learning curves and confusion matrix. Raises MissingExtraError without matplotlib."""
    from modelyard.training.report import write_report

    dataset = store.read(store.dataset_folder(run.dataset) / "dataset.json", Dataset)
    target = path or Path(run.folder) / "report.html"
    write_report(run, dataset, read_events(Path(run.folder) / "events.jsonl"), target)
    return target
