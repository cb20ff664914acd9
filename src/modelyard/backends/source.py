"""The user's model code: found, imported fresh, called with what it asks for, and digested.

A project's modules live only while they are needed: they are imported from their source text (never
from cached bytecode), with the project's folder first on ``sys.path``, and taken out of
``sys.modules`` afterwards. So two projects with a ``model.py`` each do not meet in one process, and
an edited file is always seen. Code that imports project modules late, inside ``forward``, is the one
thing that this cannot serve; such an import belongs at the top of the file.
"""

import contextlib
import functools
import importlib
import inspect
import linecache
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from modelyard import __version__
from modelyard.backends import BUILT_IN_MODELS, EXTRAS, families, recognise
from modelyard.backends.imports import local_files, local_names
from modelyard.spec.errors import MissingExtraError, ModelError, did_you_mean, nearest
from modelyard.spec.losses import is_own, metric_name
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import NaturalInput, Signature
from modelyard.store.files import digest_bytes, digest_file
from modelyard.tasks import open_task
from modelyard.tasks.own_loss import OwnLoss
from modelyard.tasks.parts import columns_of

_OURS = Path(families.__file__).parent


def build_model(
    root: Path,
    build: str,
    args: dict[str, Any],
    signature: Signature,
    task: TaskSpec,
    *,
    seed: int = 0,
    natural: NaturalInput | None = None,
) -> object:
    """The model that ``build`` makes: a built-in's full name, or ``module:function`` in the folder ``root``.

    The function is called with those it declares of ``input_shape`` (tuple of int, without the
    batch; of samples of several parts ``input_shapes``, a shape for each name), ``outputs`` (int),
    ``classes`` (tuple of str), ``vocabulary`` (int, for texts only: tokens are less than it),
    ``columns`` (for tables only, where ``natural`` is given: name and number of features of each
    column, in order) and ``seed`` (int, for frameworks that have no global one), and with
    ``args``.
    Raises ModelError naming the user's file and line.
    """
    shapes = {t.name: tuple(size or 1 for size in t.shape[1:]) for t in signature.inputs}
    shape = next(iter(shapes.values()))
    columns = columns_of(natural)
    vocabulary = max(tensor.below or 0 for tensor in signature.inputs)
    offered: dict[str, Any] = {
        **({"input_shapes": shapes} if len(shapes) > 1 else {"input_shape": shape}),
        "outputs": open_task(task).output_size,
        "classes": task.classes,
        "seed": seed,
    }
    if vocabulary:
        offered["vocabulary"] = vocabulary
    if columns:
        offered["columns"] = columns
    if build in BUILT_IN_MODELS:
        given = shapes if len(shapes) > 1 else shape
        families.check(build, args, given, vocabulary=vocabulary, columns=columns)
        return _call(families.function_of(build), build, args, offered, _OURS)
    file, module_name, name = _locate(root, build)
    with _project_modules(root):
        function = _function(_import(module_name, file, root), name, build, file)
        return _call(function, build, args, offered, root)


def code_digest(root: Path, build: str, *more: str) -> str:
    """``sha256:…`` over the source of the model's module and of every project module it imports.

    ``more`` are other functions that shape a training: a loss, metrics. Imports are read from the
    text, so nothing is run; an import made from a computed name is not seen. Dates of files do not
    matter. A built-in's digest is its name and Modelyard's version.
    """
    if build in BUILT_IN_MODELS and not more:
        return digest_bytes(f"{build} {__version__}".encode())
    name = f"{build} {__version__}" if build in BUILT_IN_MODELS else build.partition(":")[2]
    found = code_files(root, build, *more)
    files = [f"{file} {digest_file(path)}" for file, path in found.items()]
    return digest_bytes("\n".join([name, *more, *files]).encode())


def code_files(root: Path, build: str, *more: str) -> dict[str, Path]:
    """The files that ``code_digest`` reads, by their names relative to ``root``; a built-in has none."""
    top, found = root.resolve(), set[Path]()
    if build not in BUILT_IN_MODELS:
        found |= local_files(top, _locate(root, build)[0])
    for named in more:
        found |= local_files(top, _file_of(root, named, "task"))
    return {path.relative_to(top).as_posix(): path for path in sorted(found)}


def own_loss(root: Path, task: TaskSpec) -> OwnLoss | None:
    """The function of the project in ``root`` that ``task.loss`` names; None for a built-in loss.

    Raises ModelError where it is not there, or takes neither ``(ops, outputs, targets)`` nor
    ``(outputs, targets)``.
    """
    if not is_own(task.loss):
        return None
    function = _found(root, task.loss, "task.loss")
    place, count = _defined_at(function), _required(function)
    if count not in (2, 3):
        raise ModelError(
            f"task.loss = {task.loss!r} ({place}) needs {count} arguments",
            "let it take (ops, outputs, targets), or (outputs, targets) in your framework's tensors",
        )
    return OwnLoss(name=task.loss, function=function, over_ops=count == 3, place=place)


def own_metrics(root: Path, task: TaskSpec) -> dict[str, Callable[..., object]]:
    """The functions that ``task.metrics`` names, by their names. Raises ModelError as ``own_loss`` does."""
    found = {}
    for named in task.metrics:
        function = _found(root, named, "task.metrics")
        if (count := _required(function)) != 2:
            raise ModelError(
                f"task.metrics has {named!r} ({_defined_at(function)}), which needs {count} arguments",
                "let it take (outputs, targets), NumPy arrays of the whole split",
            )
        found[metric_name(named)] = function
    return found


def _found(root: Path, named: str, field: str) -> Callable[..., object]:
    file = _file_of(root, named, field)
    with _project_modules(root):
        module = _import(named.partition(":")[0], file, root)
        return _function(module, named.partition(":")[2], named, file, field)


def _required(function: Callable[..., object]) -> int:
    """Arguments without a default that are given by their place."""
    parameters = inspect.signature(function).parameters.values()
    return sum(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in parameters
    )


def framework_of(
    root: Path, build: str, args: dict[str, Any], signature: Signature, task: TaskSpec
) -> str:
    """Name of the backend that trains the model: from the table of built-ins, else by building it once."""
    if build in BUILT_IN_MODELS:
        return BUILT_IN_MODELS[build]
    return recognise(build_model(root, build, args, signature, task))


def _locate(root: Path, build: str) -> tuple[Path, str, str]:
    """``(file, module, function)`` of ``module:function``."""
    module, colon, function = build.partition(":")
    framework, name = families.split_name(build)
    ours = families.names_for(framework)
    known = ", ".join(ours)
    if not colon or not function or not module:
        hint = did_you_mean(name, ours)
        raise ModelError(
            f"model.build = {name!r} is neither a built-in model of {framework} nor module:function{hint}",
            f'write "model:build" for the function build in model.py, or one of: {known}',
        )
    return _file_of(root, build, "model.build"), module, function


def _file_of(root: Path, named: str, field: str) -> Path:
    """The file of ``module:function``. Raises ModelError naming the ``field`` where there is none."""
    module, _, function = named.partition(":")
    base = root.resolve().joinpath(*module.split("."))
    for file in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
        if file.is_file():
            return file
    close = nearest(module.removesuffix(".py"), sorted(path.stem for path in root.glob("*.py")))
    hint = f"; did you mean '{close}:{function}'?" if close else ""
    known = ", ".join(sorted(BUILT_IN_MODELS))
    raise ModelError(
        f"{field} = {named!r}, but there is no file {base.with_name(f'{base.name}.py')}{hint}",
        f"make that file, or use a built-in model: {known}"
        if field == "model.build"
        else "make that file",
    )


class _FreshLoader(SourceFileLoader):
    """Compiles the text as it is now: cached bytecode can be stale within one second, and litters."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


class _ProjectFinder:
    """Finds modules of one project folder, and of the packages in it, before anything else does."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find_spec(
        self, name: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        folders = [str(self._root)] if path is None else list(path)
        for folder in folders:
            if Path(folder).is_relative_to(self._root):
                spec = FileFinder(folder, (_FreshLoader, [".py"])).find_spec(name, target)
                if spec is not None and (spec.loader is not None or path is not None):
                    return spec
        return None


@contextlib.contextmanager
def _project_modules(root: Path) -> Iterator[None]:
    """Inside, imports see the project first; afterwards ``sys.modules`` and ``sys.path`` are as before."""
    root = root.resolve()
    names = local_names(root)

    def take_out() -> dict[str, ModuleType]:
        ours = [name for name in sys.modules if name.partition(".")[0] in names]
        return {name: sys.modules.pop(name) for name in ours}

    hidden, finder = take_out(), _ProjectFinder(root)
    sys.path.insert(0, str(root))
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        with contextlib.suppress(ValueError):  # the user's code may have changed sys.path itself
            sys.path.remove(str(root))
        take_out()
        sys.modules.update(hidden)
        linecache.checkcache()


def _import(name: str, file: Path, root: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except SyntaxError as error:
        place = f"{error.filename}:{error.lineno}"
        raise ModelError(f"{place}: {error.msg}", "mend the Python syntax there") from error
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if extra := EXTRAS.get(package):
            place = _place(error, root, file)
            raise MissingExtraError(f"{place} needs {package!r}, which is not installed", extra) from error  # fmt: skip
        raise ModelError(
            f"{_place(error, root, file)}: no module named {error.name!r}",
            f"install the package that holds {error.name!r}, or put {error.name}.py beside {file.name}",
        ) from error
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{_place(error, root, file)}: {type(error).__name__} while importing {file.name}: {error}",
            "mend the code there; it must be importable on its own",
        ) from error


def _function(
    module: ModuleType, name: str, build: str, file: Path, field: str = "model.build"
) -> Callable[..., object]:
    functions = [
        key
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    if not hasattr(module, name):
        hint = did_you_mean(name, functions)
        raise ModelError(
            f"{field} = {build!r}, but {file} has no function {name!r}{hint}",
            f"it has: {', '.join(functions) or 'no function of its own'}",
        )
    found: Callable[..., object] = getattr(module, name)
    # A model is callable too; calling it would be a forward pass.
    if inspect.isroutine(found) or inspect.isclass(found) or isinstance(found, functools.partial):
        return found
    raise ModelError(
        f"{field} = {build!r}, but {name!r} in {file} is a {type(found).__name__}, not a function",
        f"write `def build(): return {name}` and name that function"
        if field == "model.build"
        else "write a function, and name that",
    )


def _call(
    function: Callable[..., object],
    build: str,
    args: dict[str, Any],
    offered: dict[str, Any],
    root: Path,
) -> object:
    """Call the user's function with what it declares; every failure becomes a ModelError with a place."""
    place = _defined_at(function)
    chosen = _arguments(function, build, args, offered, place)
    try:
        return function(**chosen)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"{_place(error, root, None) or place}: {type(error).__name__} while building the model ({build}): {error}",
            "mend the code there, or the values in model.args",
        ) from error


def _arguments(
    function: Callable[..., object],
    build: str,
    args: dict[str, Any],
    offered: dict[str, Any],
    place: str,
) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for key in args:
        if key not in names and not takes_all:
            hint = did_you_mean(key, names)
            raise ModelError(
                f"model.args has {key!r}, which {build} ({place}) does not take{hint}",
                f"it takes: {', '.join(names) or 'nothing'}",
            )
    # A function that takes everything gets what describes the data; a seed must be asked for.
    chosen = {
        key: value
        for key, value in offered.items()
        if key in names or (takes_all and key != "seed")
    } | args
    missing = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.name not in chosen
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if missing:
        raise ModelError(
            f"{build} ({place}) needs {', '.join(map(repr, missing))}, which nothing gives",
            f"set it in model.args, give it a default, or use one of: {', '.join(offered)}",
        )
    return chosen


def _defined_at(function: Callable[..., object]) -> str:
    target = function.func if isinstance(function, functools.partial) else function
    try:
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
    except (OSError, TypeError):
        return getattr(target, "__module__", "?")


def _place(error: BaseException, root: Path, file: Path | None) -> str:
    """``file:line`` of the innermost frame in the project, where the user can do something."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if Path(f.filename).is_relative_to(root.resolve())]
    if ours:
        return f"{ours[-1].filename}:{ours[-1].lineno}"
    return str(file) if file else ""
