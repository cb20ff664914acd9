"""Preflight: in a minute, find what would stop a long training or a deployment later."""

import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from modelyard.backends import open_backend, recognise
from modelyard.backends.base import Batch, Execution, StepSettings
from modelyard.backends.source import build_model, own_loss
from modelyard.backends.start_weights import start_model
from modelyard.bundle.verify import compare
from modelyard.data.augment import augment_mistakes
from modelyard.data.cursor import Cursor
from modelyard.data.dataset import open_split
from modelyard.flow import ProjectLike, open_project
from modelyard.flow import prepare as prepare_data
from modelyard.spec.cores import available_cores
from modelyard.spec.errors import ProjectError, YardError
from modelyard.spec.project import Project
from modelyard.spec.records import Dataset, Record
from modelyard.spec.work import World
from modelyard.store import Store, open_store
from modelyard.tasks import open_task
from modelyard.tasks.signature import signature_of
from modelyard.training import budget
from modelyard.training.estimate import Measured, available_bytes, estimate, measure, words
from modelyard.training.execution import asked_for
from modelyard.training.optimizer import check_known, optimizer_settings
from modelyard.training.rehearsal import rehearse
from modelyard.training.schedules import total_steps
from modelyard.training.start_weights import find_start
from modelyard.way import open_target


class Check(Record, frozen=True, kw_only=True):
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "warning", "failed"]
    message: str
    mend: str = ""


def _quiet(_check: Check) -> None:
    """Tell nobody."""


def check(
    project: ProjectLike = "yard.toml", *, on_check: Callable[[Check], None] = _quiet
) -> list[Check]:
    """Data, one real step, one real export, disk and port; each looked at even where one before it failed.

    A project that cannot be read at all raises ProjectError.
    """
    opened, store = open_project(project)
    checks = [Check(name="project", state="ok", message=f"{opened.name}: every field understood")]
    on_check(checks[0])

    def look(name: str, act: Callable[[], list[Check]]) -> None:
        try:
            found = act()
        except YardError as error:
            found = [Check(name=name, state="failed", message=error.what, mend=error.mend)]
        for item in found:
            checks.append(item)
            on_check(item)

    look("disk", lambda: [_disk(store)])
    look("port", lambda: [_port(opened, store)])
    look("data", lambda: _data(opened))
    if not any(item.name == "data" and item.state == "failed" for item in checks):
        look("model", lambda: _model(opened, prepare_data(opened)))
    return checks


def _disk(store: Store) -> Check:
    free = shutil.disk_usage(store.root).free / 1e9
    state: Literal["ok", "warning"] = "ok" if free > 2 else "warning"
    return Check(
        name="disk",
        state=state,
        message=f"{free:.1f} GB free at {store.root}",
        mend="" if free > 2 else "free some space",
    )


def _port(project: Project, store: Store) -> Check:
    host, port = project.serve.host, project.serve.port
    running = open_target(project.deploy.target).observe(store.deployment_folder(project.name))
    if running and running.state != "stopped" and running.service.port == port:
        return Check(
            name="port", state="ok", message=f"{port} is held by this project's own service"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Check(
                name="port",
                state="warning",
                message=f"{host}:{port} cannot be used: {error.strerror}",
                mend="choose another with serve.port=8081",
            )
    return Check(name="port", state="ok", message=f"{host}:{port} is free")


def _data(project: Project) -> list[Check]:
    dataset = prepare_data(project)
    parts = ", ".join(f"{count} {name}" for name, count in dataset.splits.items())
    classes = f"; {len(dataset.task.classes)} classes" if dataset.task.classes else ""
    found = [
        Check(name="data", state="ok", message=f"{dataset.samples} samples ({parts}){classes}")
    ]
    for finding in dataset.quality:
        if finding.severity != "note":
            examples = f" ({', '.join(finding.examples[:3])})" if finding.examples else ""
            found.append(
                Check(
                    name=f"data: {finding.kind}",
                    state="warning",
                    message=finding.message + examples,
                )
            )
    return found


def _model(project: Project, dataset: Dataset) -> list[Check]:
    """One real optimizer step and one real export, compared on real samples; and what it will take."""
    task, signature = open_task(dataset.task), signature_of(dataset.input, dataset.task)
    task.higher_is_better(project.train.metric)
    classes = bool(dataset.task.classes)
    if mistakes := list(augment_mistakes(project.train.augment, dataset.input, classes=classes)):
        raise ProjectError(mistakes, "change [train.augment] in yard.toml")
    taking = _estimate(project, dataset)  # first: the export fills the memory with other things
    model = _built(project, dataset)
    backend = open_backend(recognise(model))
    check_known(backend, project.train)
    start = find_start(project)
    optimizer = project.train.optimizer
    settings = optimizer_settings(project.train, Execution(), start)
    split = open_split(dataset, "train")
    with backend.join(World(rank=0, size=1, rendezvous=""), device="cpu", threads=1):
        told = []
        if start is not None:
            model, started = start_model(backend, model, signature, start)
            told.append(Check(name="weights", state="ok", message=started.words))
        loss = own_loss(project.root, dataset.task)
        state = backend.begin(model, dataset.task, settings, signature, dataset.input, loss)
        positions = Cursor(len(split), project.train.batch_size, 0).indices(0)
        stored, targets = split.stored(positions)
        batch = Batch(inputs=stored, targets=targets, global_size=len(targets))
        state, result = backend.step(state, batch, StepSettings(learning_rate=optimizer.lr, seed=0))
        inputs, _ = split.batch(positions[:8])
        outputs = backend.evaluate(state, stored[:8])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            backend.export(state, path, signature)
            error = compare(path, signature, inputs, outputs)
    state_of_export: Literal["ok", "failed"] = "ok" if error <= 1e-4 else "failed"
    return [
        *told,
        Check(
            name="step",
            state="ok",
            message=f"one step on {len(targets)} samples, loss {float(result.loss):.3f} ({backend.name})",
        ),
        Check(
            name="export",
            state=state_of_export,
            message=f"ONNX answers within {error:.1e} of {backend.name}",
        ),
        taking,
    ]


def _estimate(project: Project, dataset: Dataset) -> Check:
    """Time, memory and cost of the whole training, from a few seconds of it."""
    section = project.train
    measured = _measured(project, dataset)
    steps = total_steps(section.epochs, dataset.splits["train"], section.batch_size)
    found = estimate(
        measured,
        rehearse(project, dataset, open_store(project.store_folder)),
        steps=steps,
        evaluations=max(1, round(section.epochs / section.evaluate_every)),
        validation=dataset.splits["validation"],
        test=dataset.splits["test"],
        workers=section.most_workers,
        limits=budget.limits_of(section),
    )
    free = available_bytes()
    scarce = free is not None and found.memory > free
    return Check(
        name="estimate",
        state="warning" if scarce else "ok",
        message=words(measured, found, section.most_workers),
        mend=f"only {(free or 0) / 1e9:.1f} GB are free here: use fewer train.workers or a smaller "
        "train.batch_size"
        if scarce
        else "",
    )


def _built(project: Project, dataset: Dataset) -> object:
    args, signature = dict(project.model.args), signature_of(dataset.input, dataset.task)
    return build_model(
        project.root,
        project.model.full_name,
        args,
        signature,
        dataset.task,
        natural=dataset.input,
    )


def _measured(project: Project, dataset: Dataset) -> Measured:
    section, signature = project.train, signature_of(dataset.input, dataset.task)

    def build() -> object:
        return _built(project, dataset)

    backend = open_backend(recognise(build()))
    # One process cannot share its weights with others: a whole copy is measured.
    execution = msgspec.structs.replace(
        asked_for(section, section.most_workers, 0), parallel="replicate"
    )
    optimizer = optimizer_settings(section, execution, find_start(project))
    split, loss = open_split(dataset, "train"), own_loss(project.root, dataset.task)
    threads = max(1, available_cores() // section.most_workers)
    with backend.join(World(rank=0, size=1, rendezvous=""), device=section.device, threads=threads):
        return measure(
            backend,
            lambda: backend.begin(build(), dataset.task, optimizer, signature, dataset.input, loss),
            split,
            Cursor(len(split), section.batch_size, section.seed),
            workers=section.most_workers,
            rate=section.optimizer.lr,
            clip_norm=section.clip_norm,
        )
