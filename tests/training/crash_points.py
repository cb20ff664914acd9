"""Dies at every file-system operation of a piece of work, and lets a fresh process look at what is left.

Run as a program: ``python crash_points.py SCENARIO``. For each operation (opening for writing, write,
fsync, rename, unlink, mkdir, rmdir, truncate, exchange of two names) and each moment (before it, in
the middle of a write, after it) a child process does the work and kills itself there; another child
then checks what it finds and goes on. With ``--power`` the operations are recorded once instead, and
for each of them the disks are made that a power cut could leave. Prints a summary as JSON.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelyard.store import files

PATCHED = (
    *("open", "write", "pwrite", "fsync", "ftruncate"),
    *("rename", "replace", "unlink", "remove", "mkdir", "rmdir"),
)
CUTS = (
    ("sure", "sure"),
    ("now", "sure"),
    ("sure", "now"),
    ("sure/now", "sure"),
    ("now/sure", "sure"),
)
"""Names and contents that survive a power cut: see `Disk.write_to`."""
MOMENTS = ("before", "middle", "after")
current: list["Watch"] = []


@dataclass
class Operation:
    """One call that changes the file system."""

    name: str
    path: str
    target: str = ""
    data: bytes = b""


@dataclass
class Watch:
    """Stands between the program and ``os``: counts, records, and at one operation kills."""

    root: str
    die_at: int = -1
    moment: str = "before"
    operations: list[Operation] = field(default_factory=list)

    def around(self, operation: Operation, act: Callable[[], Any], half: Callable[[], Any]) -> Any:
        if not (operation.path + "/").startswith(self.root + "/"):
            return act()
        number = len(self.operations)
        self.operations.append(operation)
        if number != self.die_at:
            return act()
        if self.moment == "middle":
            half()
        if self.moment == "after":
            act()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


def watch(watched: Watch) -> None:
    """Patch this process; it is never unpatched."""
    current.append(watched)
    original = {name: getattr(os, name) for name in PATCHED}

    def path_of(path: Any, folder: int | None = None) -> str:
        text = os.fsdecode(os.fspath(path))
        base = os.readlink(f"/proc/self/fd/{folder}") if folder is not None else os.getcwd()
        return os.path.join(base, text)

    def opened(path: Any, flags: int, *more: Any, dir_fd: int | None = None, **rest: Any) -> int:
        def act() -> Any:
            return original["open"](path, flags, *more, dir_fd=dir_fd, **rest)

        if not flags & (os.O_CREAT | os.O_TRUNC):
            return act()
        exists = os.path.lexists(path_of(path, dir_fd))
        name = "truncate" if exists and flags & os.O_TRUNC else "use" if exists else "create"
        return watched.around(Operation(name, path_of(path, dir_fd)), act, lambda: None)

    def on_handle(name: str) -> Callable[..., Any]:
        def call(handle: int, *arguments: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{handle}")
            data = bytes(arguments[0]) if "write" in name else b""

            def half() -> None:
                if "write" in name:
                    original[name](handle, data[: len(data) // 2], *arguments[1:])

            operation = Operation(name, path, data=data)
            return watched.around(operation, lambda: original[name](handle, *arguments), half)

        return call

    def on_path(name: str) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, dir_fd: int | None = None) -> Any:
            def act() -> Any:
                return original[name](path, *arguments, dir_fd=dir_fd)

            return watched.around(Operation(name, path_of(path, dir_fd)), act, lambda: None)

        return call

    def on_two(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def call(source: Any, target: Any) -> Any:
            operation = Operation(name, path_of(source), target=path_of(target))
            return watched.around(operation, lambda: act(source, target), lambda: None)

        return call

    os.open = opened
    for name in ("write", "pwrite", "fsync", "ftruncate"):
        setattr(os, name, on_handle(name))
    for name in ("unlink", "remove", "mkdir", "rmdir"):
        setattr(os, name, on_path(name))
    for name in ("rename", "replace"):
        setattr(os, name, on_two("rename", original[name]))
    files._swap = on_two("exchange", files._swap)
    # ``shutil.rmtree`` asks whether the functions it was born with are in these.
    os.supports_dir_fd |= {os.open, os.unlink, os.rmdir}


# --- what a power cut may leave ----------------------------------------------------------------


class Disk:
    """A model of a disk: what programs see, and what is sure to be there after a power cut.

    The content of a file is sure after fsync of the file, a name after fsync of the folder it is in.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.now: dict[int, dict[str, int]] = {}
        """Folder to its names."""
        self.sure: dict[int, dict[str, int]] = {}
        self.content: dict[int, bytes] = {}
        self.flushed: dict[int, bytes] = {}
        self._count = 0
        self.top = self._read(Path(root))

    def _new(self) -> int:
        self._count += 1
        return self._count

    def _read(self, path: Path) -> int:
        node = self._new()
        if path.is_dir():
            self.now[node] = {entry.name: self._read(entry) for entry in path.iterdir()}
            self.sure[node] = dict(self.now[node])
        else:
            self.content[node] = self.flushed[node] = path.read_bytes()
        return node

    def _find(self, path: str) -> tuple[int, str]:
        parts = Path(path).relative_to(self.root).parts
        node = self.top
        for part in parts[:-1]:
            node = self.now[node][part]
        return node, parts[-1] if parts else ""

    def _node(self, path: str) -> int:
        folder, name = self._find(path)
        return self.now[folder][name] if name else folder

    def do(self, operation: Operation) -> None:
        folder, name = self._find(operation.path)
        match operation.name:
            case "create":
                node = self.now[folder][name] = self._new()
                self.content[node] = self.flushed[node] = b""
            case "mkdir" if name not in self.now[folder]:  # else another worker was first
                node = self.now[folder][name] = self._new()
                self.now[node], self.sure[node] = {}, {}
            case "truncate" | "ftruncate":
                self.content[self._node(operation.path)] = b""
            case "write":
                self.content[self._node(operation.path)] += operation.data
            case "pwrite":
                self.content[self._node(operation.path)] = operation.data
            case "fsync":
                node = self._node(operation.path)
                if node in self.now:
                    self.sure[node] = dict(self.now[node])
                else:
                    self.flushed[node] = self.content[node]
            case "unlink" | "remove" | "rmdir":
                del self.now[folder][name]
            case "rename" | "exchange":
                other, new = self._find(operation.target)
                moved = self.now[folder].pop(name)
                if operation.name == "exchange":
                    self.now[folder][name] = self.now[other][new]
                self.now[other][new] = moved

    def write_to(self, folder: Path, names: str, contents: str) -> None:
        """``names`` and ``contents``: ``sure`` or ``now``, each for itself: disks differ in their order.

        ``names`` may differ as well above and below: ``sure/now`` is what the outer folders were sure
        of, and what the innermost ones hold now.
        """
        outer, _, inner = names.partition("/")
        self._write(self.top, folder, outer, inner or outer, contents)

    def _write(self, node: int, path: Path, outer: str, inner: str, contents: str) -> None:
        if node in self.now:
            path.mkdir(exist_ok=True)
            innermost = not any(child in self.now for child in self.now[node].values())
            names = self.now if (inner if innermost else outer) == "now" else self.sure
            for name, child in names[node].items():
                self._write(child, path / name, outer, inner, contents)
        else:
            path.write_bytes((self.content if contents == "now" else self.flushed)[node])


# --- running -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    check: Callable[[Path], None]
    """Raises AssertionError where what it finds is neither the old nor the new, or it cannot go on."""


def in_child(work: Callable[[], None]) -> tuple[int, str]:
    """Exit code (negative for a signal) and what was printed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001  it is told through the pipe
            os.write(writer, traceback.format_exc()[-3000:].encode())
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        told = file.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told


def run(scenario: Scenario, folder: Path, power: bool) -> dict[str, Any]:
    template, failures, crashes = folder / "template", [], 0
    template.mkdir()
    code, told = in_child(lambda: scenario.prepare(template))
    assert code == 0, told
    operations = recorded(scenario, template, folder)
    if power:
        for number, place in enumerate(power_cuts(template, operations, folder)):
            crashes += 1
            code, told = in_child(lambda place=place: scenario.check(place))
            if code != 0:
                failures.append(f"disk {number}: {told}")
            shutil.rmtree(place)
    for number in range(0 if power else len(operations)):
        for moment in MOMENTS:
            if moment == "middle" and "write" not in operations[number].name:
                continue
            crashes += 1
            place = folder / "place"
            shutil.copytree(template, place)

            def work(number: int = number, moment: str = moment, place: Path = place) -> None:
                watch(Watch(str(place), number, moment))
                scenario.act(place)

            code, told = in_child(work)
            # A rare operation may not come in every repetition: a wait may be shorter.
            assert code in (-signal.SIGKILL, 0), told
            code, told = in_child(lambda place=place: scenario.check(place))
            if code != 0:
                failures.append(f"{moment} {number} {operations[number]}: {told}"[:3000])
            shutil.rmtree(place)
    return {
        "operations": [f"{o.name} {Path(o.path).name}" for o in operations],
        "crashes": crashes,
        "failures": failures,
    }


def recorded(scenario: Scenario, template: Path, folder: Path) -> list[Operation]:
    """Of one undisturbed run of the work, checked as well; paths are those of ``template``."""
    place, out = folder / "whole", folder / "operations.json"
    shutil.copytree(template, place)

    def work() -> None:
        watched = Watch(str(place))
        watch(watched)
        scenario.act(place)
        found = [
            [o.name, o.path, o.target, o.data.decode("latin-1")] for o in list(watched.operations)
        ]
        out.write_text(json.dumps(found))

    code, told = in_child(work)
    assert code == 0, told
    code, told = in_child(lambda: scenario.check(place))
    assert code == 0, told
    shutil.rmtree(place)
    moved = json.loads(out.read_text().replace(str(place), str(template)))
    return [Operation(n, p, t, data.encode("latin-1")) for n, p, t, data in moved]


def power_cuts(template: Path, operations: list[Operation], folder: Path) -> Iterator[Path]:
    """Before each operation and after the last, the disks of `CUTS`."""
    disk = Disk(str(template))
    for number in range(len(operations) + 1):
        for names, contents in CUTS:
            place = folder / f"disk-{number}-{names.replace('/', '-')}-{contents}"
            disk.write_to(place, names, contents)
            yield place
        if number < len(operations):
            disk.do(operations[number])


def spare() -> None:
    """This process, forked from one that is watched, does not die."""
    current[-1].die_at = -1


def trace(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """Once, in this process, so that ``strace`` can tell whether anything goes past the watch."""
    scenario.prepare(folder)
    (folder.parent / "the-work-begins").mkdir()
    watched = Watch(str(folder))
    watch(watched)
    scenario.act(folder)
    return {"operations": [operation.name for operation in watched.operations]}


def main(scenarios: dict[str, Scenario]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", choices=scenarios)
    parser.add_argument("--power", action="store_true")
    parser.add_argument("--trace", metavar="FOLDER")
    chosen = parser.parse_args()
    if chosen.trace:
        sys.stdout.write(json.dumps(trace(scenarios[chosen.scenario], Path(chosen.trace))))
        return
    # Memory is a disk whose fsync takes no time; what a kill leaves is the same.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        found = run(scenarios[chosen.scenario], Path(folder).resolve(), chosen.power)
    sys.stdout.write(json.dumps(found))
