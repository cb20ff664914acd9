"""Training end to end on scikit-learn's digits, with real worker processes."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from modelyard.backends import open_backend
from modelyard.backends.base import OptimizerSettings
from modelyard.backends.snapshots import read_weights
from modelyard.backends.source import build_model
from modelyard.data.dataset import open_split, prepare
from modelyard.engines.forerunner import SWITCH
from modelyard.spec.errors import (
    ModelError,
    ProjectError,
    StoreError,
    TrainingError,
    TrainingInterrupted,
    UsageError,
)
from modelyard.spec.read import read_project
from modelyard.spec.records import (
    AnyEvent,
    CheckpointSaved,
    Evaluated,
    Noticed,
    Restarted,
    Run,
    RunFinished,
    RunStarted,
    StepDone,
    WorkerJoined,
    WorkerLost,
)
from modelyard.spec.work import World
from modelyard.store import open_store
from modelyard.store.events import read_events
from modelyard.tasks import open_task
from modelyard.tasks.signature import signature_of
from modelyard.training import checkpoints
from modelyard.training.evaluation import evaluate
from modelyard.training.inputs import inputs_of, run_id
from modelyard.training.train import complete_run, train

Place = Any
"""conftest.Place: a project folder, its store, and commands run on it."""


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} s")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def only_run(place: Place) -> Path:
    return next((place.store.root / "runs").iterdir())


def events_of(run_folder: Path) -> list[AnyEvent]:
    return read_events(run_folder / "events.jsonl")


def checkpoint_of(place: Place) -> int | None:
    """Step of the newest checkpoint of the only run there is."""
    found = sorted((place.store.root / "runs").glob("*/checkpoints/step-*"))
    return int(found[-1].name[5:]) if found else None


def without_dropout(place: Place) -> Place:
    model = place.root / "model.py"
    model.write_text(model.read_text().replace("dropout=0.1", "dropout=0.0"))
    return place


def test_two_workers_give_what_one_gives_and_nothing_is_trained_twice(place: Place) -> None:
    without_dropout(place)
    runs = []
    for workers in (1, 2):
        project = place.project(workers=workers, epochs=5)
        seen: list[AnyEvent] = []
        run = train(project, place.dataset(project), place.store, observers=[seen.append])
        runs.append(run)
        assert run.state == "complete" and run.step == run.steps == 99
        assert run.world_size == len({w.pid for w in run.workers}) == workers
        assert run.backend == "pytorch" and run.restarts == 0
        assert seen == events_of(Path(run.folder))
        assert sum(map(sum, run.confusion)) == place.dataset(project).splits["test"]
        assert run.best is not None and checkpoints.verified(Path(run.best.folder))
    one, two = runs
    assert one.metrics["test/accuracy"] > 0.88
    assert two.metrics == pytest.approx(one.metrics, abs=2e-3)
    events = [
        {type(event) for event in events_of(Path(run.folder))}
        >= {RunStarted, WorkerJoined, StepDone, Evaluated, CheckpointSaved, RunFinished}
        for run in runs
    ]
    assert events == [True, True]
    began = time.monotonic()
    again = train(place.project(workers=2, epochs=5), place.dataset(project), place.store)
    assert again == two and time.monotonic() - began < 1


def test_a_finished_training_needs_no_worker_to_be_recorded_again(place: Place) -> None:
    """Killed between the workers' result and the record, or moved: what is there is taken."""
    project = place.project(epochs=1)
    first = train(project, place.dataset(project), place.store)
    (Path(first.folder) / "run.json").unlink()
    second = train(project, place.dataset(project), place.store)
    assert second.state == "complete" and second.workers == first.workers
    assert second.metrics == first.metrics and second.best == first.best
    place.store.root.rename(place.root / "moved")
    moved = complete_run(open_store(place.root / "moved"), first.id)
    assert moved is not None and moved.best is not None
    assert checkpoints.verified(Path(moved.best.folder)).step == moved.best.step


def test_a_project_without_a_validation_split_ends_with_the_last_checkpoint(place: Place) -> None:
    file = place.root / "yard.toml"
    file.write_text(file.read_text().replace("[model]", "split.validation = 0.0\n[model]"))
    project = place.project(epochs=1)
    run = train(project, place.dataset(project), place.store)
    assert run.best is not None and run.best.step == run.steps
    assert set(run.metrics) == {"test/" + name.partition("/")[2] for name in run.metrics}


def test_early_stopping_ends_before_all_epochs(place: Place) -> None:
    project = place.project(
        epochs=50, optimizer={"name": "sgd", "lr": 1e-9}, early_stopping={"patience": 2}
    )
    run = train(project, place.dataset(project), place.store)
    finished = [e for e in events_of(Path(run.folder)) if isinstance(e, RunFinished)]
    assert finished[-1].reason == "early stopping"
    assert run.step < run.steps / 5


@pytest.mark.slow
def test_ctrl_c_keeps_a_checkpoint_and_the_same_command_goes_on(slow_place: Place) -> None:
    command = slow_place.command(epochs=8, workers=2)
    wait_for(lambda: checkpoint_of(slow_place))
    command.send_signal(signal.SIGINT)
    _, told = command.communicate(timeout=60)
    assert command.returncode == TrainingInterrupted.exit_code, told
    assert "goes on from step" in told and "Traceback" not in told
    folder = only_run(slow_place)
    record = Run.from_json((folder / "run.json").read_bytes())
    assert record.state == "interrupted"
    stopped_at = checkpoint_of(slow_place)
    assert stopped_at is not None and f"goes on from step {stopped_at} of" in told
    second = slow_place.command(epochs=8, workers=2)
    out, told = second.communicate(timeout=120)
    assert second.returncode == 0, told
    assert "COMPLETE" in out
    starts = [event.step for event in events_of(folder) if isinstance(event, RunStarted)]
    assert starts == [0, stopped_at]


@pytest.mark.slow
def test_sigterm_to_the_parent_counts_as_ctrl_c(slow_place: Place) -> None:
    command = slow_place.command(epochs=8)
    wait_for(lambda: checkpoint_of(slow_place))
    command.send_signal(signal.SIGTERM)
    _, told = command.communicate(timeout=60)
    assert command.returncode == TrainingInterrupted.exit_code, told


@pytest.mark.slow
def test_a_resumed_training_ends_with_the_very_weights_of_an_unbroken_one(place: Place) -> None:
    """With dropout and momentum: order, seeds and optimizer state must all come back."""
    project = place.project(epochs=4)
    whole = train(project, place.dataset(project), place.store)
    assert whole.best is not None
    folder = Path(whole.folder)
    unbroken, _ = checkpoints.load(checkpoints.verified(checkpoints.folder_of(folder, whole.steps)))
    # Take the run back to where it was after two epochs, as a crash would have left it.
    for file in ("run.json", "result.json"):
        (folder / file).unlink()
    project = place.project(epochs=4, keep=99)
    for path in (folder / "checkpoints").iterdir():
        if path.is_dir() and int(path.name[5:]) > 60:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    newest, _ = checkpoints.latest(folder)
    assert newest is not None and 0 < newest.step < whole.steps
    resumed = train(project, place.dataset(project), place.store)
    assert resumed.id == whole.id
    again, _ = checkpoints.load(checkpoints.verified(checkpoints.folder_of(folder, whole.steps)))
    for name, array in unbroken.tensors.items():
        assert (array == again.tensors[name]).all(), name


def test_with_ema_the_average_is_what_is_judged_and_kept_as_the_best(place: Place) -> None:
    """What the record says of the best checkpoint is true of its averaged weights, which are those exported."""
    project = place.project(ema=0.95, epochs=2)
    dataset = place.dataset(project)
    run = train(project, dataset, place.store)
    assert run.best is not None and run.inputs["train.ema"] == "0.95"
    signature = signature_of(dataset.input, dataset.task)
    backend = open_backend("pytorch")
    model = build_model(
        place.root, project.model.build, project.model.args, signature, dataset.task, seed=0
    )
    settings = OptimizerSettings(name="adamw")
    state = backend.begin(model, dataset.task, settings, signature, dataset.input)
    weights = read_weights(Path(run.best.folder), run.best.files)
    state = backend.restore(state, weights)
    task, split = open_task(dataset.task), open_split(dataset, "test")
    alone = World(rank=0, size=1, rendezvous="")
    statistics, _ = evaluate(backend, state, task, split, alone)
    found = task.metrics(statistics)
    assert {f"test/{name}": value for name, value in found.items()} == pytest.approx(
        {k: v for k, v in run.metrics.items() if k.startswith("test/")}, rel=1e-5
    )


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(place: Place) -> None:
    project = place.project(epochs=3)
    first = train(project, place.dataset(project), place.store)
    folder = Path(first.folder)
    (folder / "run.json").unlink()
    (folder / "result.json").unlink()
    weights = checkpoints.folder_of(folder, first.steps) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    seen: list[AnyEvent] = []
    run = train(project, place.dataset(project), place.store, observers=[seen.append])
    assert run.state == "complete" and run.metrics == pytest.approx(first.metrics)
    assert [e for e in seen if isinstance(e, Noticed) and "damaged" in e.message]
    starts = [e.step for e in seen if isinstance(e, RunStarted)]
    assert 0 < starts[0] < run.steps


@pytest.mark.slow
def test_a_killed_worker_is_replaced(slow_place: Place) -> None:
    project = slow_place.project(epochs=4, workers=2)

    def murder(event: AnyEvent) -> None:
        if isinstance(event, CheckpointSaved) and event.attempt == 0 and not killed:
            killed.extend(e.pid for e in events_of(only_run(slow_place)) if joined(e, rank=1))
            kill(killed[0])

    def joined(event: AnyEvent, rank: int) -> bool:
        return isinstance(event, WorkerJoined) and event.rank == rank

    killed: list[int] = []
    run = train(project, slow_place.dataset(project), slow_place.store, observers=[murder])
    assert run.state == "complete" and run.restarts == 1
    assert run.metrics["test/accuracy"] > 0.5
    assert len(run.workers) == 4
    events = events_of(Path(run.folder))
    lost = [event for event in events if isinstance(event, WorkerLost)]
    assert [(event.rank, event.pid) for event in lost] == [(1, killed[0])]
    restarted = [event.step for event in events if isinstance(event, Restarted)]
    assert restarted[0] > 0


@pytest.mark.slow
def test_too_many_losses_are_an_error_that_says_so(slow_place: Place) -> None:
    project = slow_place.project(epochs=4, max_restarts=1)

    def murder(event: AnyEvent) -> None:
        if isinstance(event, RunStarted):
            kill(
                [e.pid for e in events_of(only_run(slow_place)) if isinstance(e, WorkerJoined)][-1]
            )

    with pytest.raises(TrainingError, match=r"SIGKILL.*after 1 restart") as caught:
        train(project, slow_place.dataset(project), slow_place.store, observers=[murder])
    assert "rank-0.log" in caught.value.mend
    record = Run.from_json((only_run(slow_place) / "run.json").read_bytes())
    assert record.state == "failed" and record.restarts == 1


@pytest.mark.slow
def test_workers_end_with_a_killed_parent_and_a_repeat_goes_on(slow_place: Place) -> None:
    command = slow_place.command(epochs=6, workers=2)
    step = wait_for(lambda: checkpoint_of(slow_place))
    pids = [e.pid for e in events_of(only_run(slow_place)) if isinstance(e, WorkerJoined)]
    assert len(pids) == 2
    kill(command.pid)
    command.communicate()
    wait_for(lambda: not any(is_running(pid) for pid in pids), 10)
    second = slow_place.command(epochs=6, workers=2)
    _, told = second.communicate(timeout=120)
    assert second.returncode == 0, told
    starts = [e.step for e in events_of(only_run(slow_place)) if isinstance(e, RunStarted)]
    assert starts[0] == 0 and starts[1] >= step


@pytest.mark.slow
def test_a_second_command_on_the_same_run_is_told_who_has_it(slow_place: Place) -> None:
    command = slow_place.command(epochs=8)
    wait_for(lambda: checkpoint_of(slow_place))
    second = slow_place.command(epochs=8)
    _, told = second.communicate(timeout=60)
    assert second.returncode == UsageError.exit_code
    assert f"process {command.pid}" in told
    command.send_signal(signal.SIGINT)
    command.communicate(timeout=60)


def broken(place: Place, forward: str) -> None:
    (place.root / "model.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Broken(nn.Module):\n"
        "    def __init__(self, outputs):\n"
        "        super().__init__()\n"
        "        self.layer = nn.Linear(64, outputs)\n"
        f"    def forward(self, x):\n        {forward}\n"
        "def build(outputs):\n    return Broken(outputs)\n"
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_of_the_wrong_shape_is_one_clear_error(place: Place, workers: int) -> None:
    broken(place, "return self.layer(x.flatten(1))[:, :3]")
    project = place.project(workers=workers)
    with pytest.raises(ModelError, match=r"\(2, 10\)") as caught:
        train(project, place.dataset(project), place.store)
    assert "Traceback" not in str(caught.value)
    record = Run.from_json((only_run(place) / "run.json").read_bytes())
    assert record.state == "failed" and record.restarts == 0
    assert record.error == caught.value.what


def test_a_loss_that_is_no_number_names_the_step_and_the_mend(place: Place) -> None:
    broken(
        place, "return self.layer(x.flatten(1)) * (x.sum() if not self.training else x.sum() / 0)"
    )
    project = place.project(workers=2)
    with pytest.raises(TrainingError, match=r"not a finite number at step 1 ") as caught:
        train(project, place.dataset(project), place.store)
    assert "train.optimizer.lr" in caught.value.mend and "clip_norm" in caught.value.mend


def test_an_unexpected_exception_names_its_last_words_and_the_log(place: Place) -> None:
    broken(place, "return self.layer(x.flatten(1)) if not self.training else {}['lost']")
    project = place.project()
    with pytest.raises((TrainingError, ModelError), match=r"KeyError: 'lost'"):
        train(project, place.dataset(project), place.store)


def test_a_worker_that_takes_its_own_life_without_a_word(place: Place) -> None:
    broken(
        place, "import os; os._exit(2) if self.training else None; return self.layer(x.flatten(1))"
    )
    project = place.project()
    with pytest.raises(TrainingError, match=r"worker 0 ended with exit code 2") as caught:
        train(project, place.dataset(project), place.store)
    assert "rank-0.log" in caught.value.mend


def test_a_full_disk_in_a_worker_is_a_store_error_and_harms_nothing(place: Place) -> None:
    runs = place.store.root / "runs"
    runs.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(runs)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("no permission to mount a small disk")
    try:
        project = place.project(epochs=1)
        wide = project.model.model_copy(update={"args": {"width": 2000}})
        project = project.model_copy(update={"model": wide})
        with pytest.raises(StoreError, match="disk is full"):
            train(project, place.dataset(project), place.store)
        folder = only_run(place)
        assert checkpoints.latest(folder) == (None, [])
        assert Run.from_json((folder / "run.json").read_bytes()).state in ("failed", "running")
    finally:
        # Lazily: the log of a forerunner that is kept for other tests may lie there.
        subprocess.run(["umount", "-l", str(runs)], check=True)


def test_mistakes_are_told_before_a_process_is_started(place: Place) -> None:
    section = place.project().train.model_copy(
        update={"workers": 3, "batch_size": 2, "metric": "acuracy"}
    )
    project = place.project().model_copy(update={"train": section})
    with pytest.raises(ProjectError) as caught:
        train(project, place.dataset(project), place.store)
    assert [m.where for m in caught.value.mistakes] == ["train.workers", "train.metric"]
    assert "accuracy" in str(caught.value)
    assert not (place.store.root / "runs").exists()


def test_inputs_decide_the_run_and_nothing_else_does(place: Place) -> None:
    def identifier(**fields: object) -> str:
        return run_id(inputs_of(place.project(**fields), "data-1", "code-1"))

    same = identifier()
    assert same.startswith("digits-") and len(same) == len("digits-") + 10
    for field in ({"max_restarts": 9}, {"keep": 7}, {"checkpoint_seconds": 1}, {"device": "auto"}):
        assert identifier(**field) == same
    others = [
        identifier(epochs=7),
        identifier(seed=1),
        identifier(**{"optimizer.lr": 0.5}),
        run_id(inputs_of(place.project(), "data-2", "code-1")),
        run_id(inputs_of(place.project(), "data-1", "code-2")),
    ]
    assert len({same, *others}) == 6


@pytest.mark.filterwarnings(
    "ignore:os.fork:RuntimeWarning"
)  # of JAX, where other tests have used it
def test_a_worker_alone_ends_with_its_parent_even_without_the_kernel() -> None:
    """The portable watch: a child of a child that is killed notices by its parent's number."""
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        worker = os.fork()
        if worker == 0:
            os.close(read)
            from modelyard.spec.parent import end_with_parent

            end_with_parent()
            os.write(write, str(os.getpid()).encode())
            os.close(write)
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
        os._exit(0)
    os.close(write)
    pid = int(os.read(read, 32))
    kill(middle)
    os.waitpid(middle, 0)
    wait_for(lambda: not is_running(pid), 20)
    os.close(read)


@pytest.mark.slow
def test_forked_workers_train_what_workers_of_their_own_train(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: with dropout, two workers and gradients summed over both."""
    project = place.project(workers=2, epochs=2)
    monkeypatch.setenv("NOT_KEPT", "1")  # a variable of its own: no forerunner of before serves
    weights = []
    for name in ("forked", "plain"):
        store = open_store(place.root / name)
        run = train(project, prepare(project, store), store)
        folder = Path(run.folder)
        assert (folder / "workers" / "logs" / "forerunner.log").exists() == (name == "forked")
        weights.append(
            checkpoints.load(checkpoints.verified(checkpoints.folder_of(folder, run.steps)))[0]
        )
        monkeypatch.setenv(SWITCH, "1")
    forked, plain = weights
    assert forked.tensors.keys() == plain.tensors.keys()
    for name, array in forked.tensors.items():
        assert (array == plain.tensors[name]).all(), name


@pytest.mark.slow
def test_pictures_that_are_decoded_beside_the_steps_teach_the_same(place: Place) -> None:
    """Two workers, each with decoders of its own: bit-equal to a training from pixels."""
    images, labels = load_digits(return_X_y=True)
    for number, (pixels, label) in enumerate(zip(images[:400], labels[:400], strict=True)):
        folder = place.root / "pictures" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((pixels.reshape(8, 8) * 15.9).astype(np.uint8))
        picture.save(folder / f"{number}.png")
    weights = []
    for keep in ("pixels", "files"):
        project = read_project(
            place.root / "yard.toml",
            {
                "data.source": "images",
                "data.path": "pictures",
                "data.size": [8, 8],
                "data.color": "grey",
                "data.keep": keep,
                "train.epochs": 2,
                "train.workers": 2,
            },
        )
        run = train(project, place.dataset(project), place.store)
        newest, _ = checkpoints.latest(Path(run.folder))
        assert newest is not None
        weights.append(checkpoints.load(newest)[0].tensors)
    assert weights[0].keys() == weights[1].keys()
    for name, expected in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], expected)
