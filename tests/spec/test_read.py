"""Reading a project: layers of precedence, and every mistake at once with its place."""

from pathlib import Path

import pytest

from modelyard.spec.errors import NotFoundError, ProjectError
from modelyard.spec.project import ModelSection
from modelyard.spec.read import field_names, override, read_project

GOOD = """\
[project]
name = "digits"

[data]
source = "images"
path = "data"

[model]
build = "cnn-small"

[train]
epochs = 4
optimizer = { name = "sgd", lr = 0.1 }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "yard.toml").write_text(GOOD)
    return tmp_path


def mistakes(folder: Path, text: str, **arguments: object) -> dict[str, str]:
    """The mistakes of a project file as {"line field": message}."""
    (folder / "yard.toml").write_text(text)
    with pytest.raises(ProjectError) as caught:
        read_project(folder, environment={}, **arguments)  # type: ignore[arg-type]
    return {f"{m.line} {m.where}": str(m) for m in caught.value.mistakes}


def test_the_file_and_its_defaults(folder: Path) -> None:
    project = read_project(folder, environment={})
    assert project.name == "digits"
    assert project.train.epochs == 4
    assert project.train.batch_size == 32
    assert project.root == folder.resolve()
    assert project.store_folder == folder.resolve() / ".yard"


def test_a_later_source_overrules_an_earlier_one(folder: Path) -> None:
    environment = {"YARD_TRAIN_EPOCHS": "5", "YARD_TRAIN_OPTIMIZER_LR": "0.2", "HOME": "/"}
    project = read_project(folder, {"train.epochs": 6}, environment=environment)
    assert project.train.epochs == 6
    assert project.train.optimizer.lr == 0.2
    assert project.train.optimizer.name == "sgd"


def test_a_field_of_train_may_stand_alone(folder: Path) -> None:
    assert read_project(folder, {"epochs": 0.5}, environment={}).train.epochs == 0.5


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("train.epochs=3", ("train.epochs", 3)),
        ("data.color=grey", ("data.color", "grey")),
        ("data.size=[8, 8]", ("data.size", [8, 8])),
        ('project.name="a=b"', ("project.name", "a=b")),
    ],
)
def test_an_override_on_the_command_line(text: str, pair: tuple[str, object]) -> None:
    assert override(text) == pair


def test_seven_mistakes_in_one_run_with_their_lines(folder: Path) -> None:
    found = mistakes(
        folder,
        """\
[project]
name = "My Digits"

[data]
source = "imagse"
path = "dat"

[model]
build = "cnn-small"
bulid = 1

[train]
epochs = "ten"
workers = 64
optimizer = { name = "adamv" }
""",
    )
    assert list(found) == [
        "2 project.name",
        "5 data.source",
        "6 data.path",
        "10 model.bulid",
        "12 train.batch_size",  # not written in the file: the line of its table
        "13 train.epochs",
        "15 train.optimizer.name",
    ]
    assert "did you mean 'images'" in found["5 data.source"]
    assert "did you mean 'data'" in found["6 data.path"]
    assert "did you mean 'build'" in found["10 model.bulid"]
    assert "expected a valid number" in found["13 train.epochs"]
    assert "did you mean 'adam'" in found["15 train.optimizer.name"]


@pytest.mark.parametrize(
    ("optimizer", "field", "words"),
    [
        ('name = "adam", nesterov = true', "nesterov", "means nothing to 'adam'"),
        ('name = "lion", epsilon = 1e-8', "epsilon", "'adam' or 'adamw' or 'rmsprop'"),
        ('name = "sgd", betas = [0.9, 0.99]', "betas", "'adam' or 'adamw' or 'lion'"),
        ("momentum = 0.5", "momentum", "means nothing to 'adamw'"),
        ('name = "sgd", momentum = 0, nesterov = true', "nesterov", "without momentum"),
        ('name = "sdg"', "name", "did you mean 'sgd'?"),
        ('name = "adam", betas = [0.9, 1.5]', "betas.1", "1.5 is not possible"),
    ],
)
def test_what_means_nothing_to_an_optimizer_is_a_mistake(
    folder: Path, optimizer: str, field: str, words: str
) -> None:
    text = GOOD.replace('name = "sgd", lr = 0.1', optimizer)
    assert words in mistakes(folder, text)[f"13 train.optimizer.{field}"]


@pytest.mark.parametrize(
    ("schedule", "field", "words"),
    [
        ('name = "cosine", gamma = 0.5', "gamma", "it with 'step' or 'exponential'"),
        ("factor = 0.5", "factor", "means nothing to 'cosine'"),
        ('name = "constant", floor = 0.1', "floor", "means nothing to 'constant'"),
        ('name = "step"', "name", "does not say when it drops"),
        ('name = "step", every = 3, milestones = [2]', "name", "every and milestones"),
        ('name = "onecycle"', "name", "did you mean 'one-cycle'?"),
    ],
)
def test_what_means_nothing_to_a_schedule_is_a_mistake(
    folder: Path, schedule: str, field: str, words: str
) -> None:
    text = f"{GOOD}schedule = {{ {schedule} }}\n"
    assert words in mistakes(folder, text)[f"14 train.schedule.{field}"]


def test_groups_of_weights_and_a_mistake_in_one(folder: Path) -> None:
    groups = """
[[train.optimizer.groups]]
match = "a.*"
lr_scale = 0.5
[[train.optimizer.groups]]
mach = "b.*"
"""
    text = GOOD.replace('optimizer = { name = "sgd", lr = 0.1 }\n', groups)
    found = mistakes(folder, text)
    assert "did you mean 'match'?" in found["18 train.optimizer.groups.1.mach"]
    assert any("is missing" in message for message in found.values())
    (folder / "yard.toml").write_text(text.replace("mach", "match"))
    project = read_project(folder, {"train.freeze": ["c.*"]}, environment={})
    assert [group.match for group in project.train.optimizer.groups] == ["a.*", "b.*"]
    assert project.train.freeze == ("c.*",)


def test_pairs_that_exclude_each_other(folder: Path) -> None:
    found = mistakes(folder, GOOD + "clip_norm = 1.0\nclip_value = 0.5\n")
    assert "one of the two" in found["15 train.clip_value"]
    found = mistakes(folder, GOOD + 'freeze = ["a.*"]\nlora = { rank = 4 }\n')
    assert "train.lora.also" in found["14 train.freeze"]
    text = GOOD.replace("[model]", "split = { validation = 0 }\n[model]")
    found = mistakes(folder, text + 'schedule = { name = "plateau" }\n')
    assert "waits for evaluations" in next(iter(found.values()))


def test_a_framework_is_for_built_in_models(folder: Path) -> None:
    (folder / "model.py").write_text("def build(): ...")
    both = GOOD.replace('"cnn-small"', '"model:build"\nframework = "keras"')
    (found,) = mistakes(folder, both).values()
    assert "is for built-in models, and model.build is 'model:build'" in found
    model = ModelSection(build="resnet", framework="keras")
    assert model.full_name == "keras/resnet" and ModelSection(build="resnet").full_name == "resnet"


def test_a_missing_field_names_its_section(folder: Path) -> None:
    found = mistakes(folder, GOOD.replace('build = "cnn-small"', ""))
    assert "is missing" in found["8 model.build"]


def test_a_number_in_quotes_is_a_mistake(folder: Path) -> None:
    assert "13 train.optimizer.lr" in mistakes(folder, GOOD.replace("lr = 0.1", 'lr = "0.1"'))


def test_words_beyond_the_type(folder: Path) -> None:
    found = mistakes(folder, GOOD + 'engine = "locl"\n', choices={"train.engine": ["local", "ray"]})
    assert "did you mean 'local'" in found["14 train.engine"]


def test_a_mistake_in_an_override_names_the_override(folder: Path) -> None:
    with pytest.raises(ProjectError) as caught:
        read_project(folder, {"train.epoch": 3}, environment={"YARD_TRAIN_KEEP": "none"})
    text = str(caught.value)
    assert "command line (train.epoch): train.epoch: unknown field" in text
    assert "environment (YARD_TRAIN_KEEP): train.keep" in text


def test_broken_syntax_names_the_line(folder: Path) -> None:
    assert "yard.toml:2: syntax" in str(mistakes(folder, "[project]\nname = digits\n"))


def test_a_model_file_that_is_not_there(folder: Path) -> None:
    (folder / "model.py").write_text("")
    found = mistakes(folder, GOOD.replace("cnn-small", "modle:build"))
    assert "did you mean 'model:build'" in found["9 model.build"]


def test_no_project_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no project file"):
        read_project(tmp_path)


def test_every_field_has_its_own_variable() -> None:
    variables = [name.replace(".", "_") for name in field_names()]
    assert len(variables) == len(set(variables))
