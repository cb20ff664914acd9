"""What a run was made on and with: machine, versions, command, and a copy of the user's code."""

import os
import platform
import shlex
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from modelyard import __version__
from modelyard.backends import OWNS
from modelyard.backends.source import code_files
from modelyard.spec.cores import available_cores
from modelyard.spec.errors import StoreError, from_os_error
from modelyard.spec.losses import own_functions
from modelyard.spec.project import Project
from modelyard.spec.records import Machine, Run
from modelyard.store.files import digest_file, write_atomic

PROJECT, CODE = "project.json", "code"
_WITH = (
    "msgspec",
    "numpy",
    "pillow",
    "pydantic",
    "safetensors",
    "pyarrow",
    "tensorflow",
    "tensorflow-cpu",
    "jaxlib",
)
"""Packages beside the backends' own whose version can matter for what comes out."""
_GPUS = Path("/proc/driver/nvidia/gpus")


def machine() -> Machine:
    """This machine, without starting a program or loading a framework."""
    return Machine(
        host=socket.gethostname(),
        system=platform.platform(),
        processor=_processor(),
        cores=available_cores(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=tuple(_gpus()),
    )


def versions() -> dict[str, str]:
    """Of Modelyard, Python, every framework that is installed, and what they share."""
    found = {"modelyard": __version__, "python": platform.python_version()}
    for name in sorted({*_WITH, *OWNS}):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def command() -> str:
    """The command line of this process, as it can be typed again."""
    ours = sys.argv[0].endswith(("/yard", "/modelyard/cli/__main__.py"))
    return shlex.join(["yard", *sys.argv[1:]] if ours else sys.orig_argv)


def keep(folder: Path, project: Project) -> dict[str, str]:
    """Keep the project and the code of its model in the run's folder; returns each file's digest."""
    files = code_files(project.root, project.model.full_name, *own_functions(project.task))
    try:
        # Not where it is tracked: the address may hold a password, and changes nothing.
        write_atomic(
            folder / PROJECT, project.model_dump_json(indent=2, exclude={"track"}).encode()
        )
        for name, path in files.items():
            write_atomic(folder / CODE / name, path.read_bytes())
        return {name: digest_file(path) for name, path in files.items()}
    except OSError as error:
        raise from_os_error(error) from error


def kept_project(run: Run, root: Path) -> Project:
    """The project as ``run`` was asked for, with its code in ``root``. Raises StoreError."""
    file = Path(run.folder) / PROJECT
    try:
        content = msgspec.json.decode(file.read_bytes())
        return Project.model_validate({**content, "root": root})
    except FileNotFoundError as error:
        raise StoreError(
            f"the run {run.id} does not know its project: it was made by an older Modelyard",
            "train it again; newer runs keep what they were made from",
        ) from error
    except OSError as error:
        raise from_os_error(error) from error
    except ValueError as error:
        raise StoreError(f"{file} is damaged: {error}", "the run cannot be repeated") from error


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _gpus() -> list[str]:
    """Models of NVIDIA's cards, as the driver lists them."""
    found = []
    for file in sorted(_GPUS.glob("*/information")):
        for line in file.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "Model":
                found.append(value.strip())
    return found
