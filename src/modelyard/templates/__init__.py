"""Templates: whole little projects with real data, written by ``yard new``.

A template is one function ``write(folder, name)`` that fills an empty folder. The text files of the
built-in ones lie in ``files/<template>/``; their data comes out of scikit-learn, so that nothing is
downloaded. Other packages add theirs by the entry-point group ``modelyard.templates``.
"""

import shutil
import tempfile
from pathlib import Path

from modelyard.spec.errors import UsageError, YardError, did_you_mean, from_os_error
from modelyard.spec.plugins import Plugin, load, table

BUILT_IN = {
    "image-classification": Plugin(
        "modelyard.templates.image_classification:write",
        "handwritten digits as PNG files, one folder per class; a small convolutional network",
        "templates",
    ),
    "tabular-classification": Plugin(
        "modelyard.templates.tabular_classification:write",
        "breast tumours, malignant or benign, as a CSV table; a multi-layer perceptron",
        "templates",
    ),
    "tabular-regression": Plugin(
        "modelyard.templates.tabular_regression:write",
        "progression of diabetes after a year as a CSV table; a multi-layer perceptron",
        "templates",
    ),
}
MARK = "{{name}}"
"""Stands for the project's name in the text files."""
FILES = Path(__file__).parent / "files"
DEFAULT = "pytorch"
"""The framework of a template's own ``model.py``; those of others lie in folders of their names."""


def names() -> list[str]:
    """Every template that ``create`` knows."""
    return sorted(table("templates", BUILT_IN))


def frameworks(template: str) -> list[str]:
    """Those that a built-in template has a model for."""
    variants = [path.name for path in (FILES / template).glob("*/") if (path / "model.py").exists()]
    return [DEFAULT, *sorted(variants)]


def create(template: str, folder: Path, name: str, framework: str = DEFAULT) -> list[Path]:
    """Write a project into ``folder`` (new or empty) and return its files, sorted.

    ``framework`` chooses the model's: the same project, another ``model.py``.

    The folder appears whole or not at all: everything is written beside it and then renamed.

    Raises UsageError for an unknown template or framework, a name that cannot be a project's name, or a folder
    that is in use; MissingExtraError without scikit-learn; StoreError for a full disk.
    """
    _check_name(name)
    _check_free(folder)
    write = load("templates", template, BUILT_IN)
    _check_framework(template, framework)
    target = folder.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            temporary.chmod(0o755)
            write(temporary, name)
            if framework != DEFAULT:
                _copy(FILES / template / framework, temporary, name)
            _publish(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise _explain(error, folder) from error
    return sorted(path for path in folder.rglob("*") if path.is_file())


def copy_files(template: str, folder: Path, name: str) -> None:
    """Copy the text files of a built-in template, with the project's name in the marked places."""
    _copy(FILES / template, folder, name)


def _copy(source: Path, folder: Path, name: str) -> None:
    for file in sorted(path for path in source.iterdir() if path.is_file()):
        # Packaging tools drop files called .gitignore, so it travels under a plain name.
        target = folder / (".gitignore" if file.name == "gitignore" else file.name)
        target.write_text(file.read_text(encoding="utf-8").replace(MARK, name), encoding="utf-8")


def _check_framework(template: str, framework: str) -> None:
    if framework == DEFAULT:
        return
    known = frameworks(template) if template in BUILT_IN else []
    if framework not in known:
        hint = did_you_mean(framework, known)
        raise UsageError(
            f"the template {template!r} has no model for {framework!r}{hint}",
            f"it has: {', '.join(known)}" if known else "leave out --framework",
        )


def _check_name(name: str) -> None:
    import re

    from pydantic import TypeAdapter, ValidationError  # costs 0.1 s; `yard --help` needs none of it

    from modelyard.spec.project import Name

    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        close = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].strip("-")
        hint = f"; did you mean {close!r}?" if close else ""
        raise UsageError(
            f"{name!r} cannot be the name of a project{hint}",
            "use lower-case letters, digits and hyphens, at most 63; the name becomes a host name",
        ) from error


def _check_free(folder: Path) -> None:
    try:
        if folder.is_dir() and not any(folder.iterdir()):
            return
    except OSError as error:
        raise _explain(error, folder) from error
    if folder.exists() or folder.is_symlink():
        kind = "is not empty" if folder.is_dir() else "is a file"
        raise UsageError(f"{folder} {kind}", "choose another name, or remove it first")


def _publish(temporary: Path, target: Path) -> None:
    """Rename as a whole; an empty folder that exists may be somebody's current one, so it is filled instead."""
    if not target.exists():
        temporary.rename(target)
        return
    # The project file last: without it the folder is not a project yet.
    for entry in sorted(temporary.iterdir(), key=lambda entry: entry.name == "yard.toml"):
        entry.rename(target / entry.name)


def _explain(error: OSError, folder: Path) -> YardError:
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
        return UsageError(
            f"cannot write the project to {folder}: {error.strerror}: {error.filename}",
            "choose a folder that you may write to",
        )
    return from_os_error(error)
