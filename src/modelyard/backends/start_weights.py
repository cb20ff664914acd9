"""Weights from elsewhere into a model: read from files that hold no code, fitted by name, and put in.

Names must be the model's own, after ``model.rename``. Nothing is turned or cut to make it fit: a matrix
of another framework often lies the other way round, and one that is square would not show it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from modelyard.backends.base import Backend, Weight
from modelyard.backends.snapshots import read_weights
from modelyard.backends.tensors import Array, open_tensors
from modelyard.spec.errors import ModelError, did_you_mean, nearest
from modelyard.spec.signature import Signature
from modelyard.spec.start_weights import Started, StartWeights
from modelyard.store.files import digest_file

_SHOWN = 5


@dataclass(frozen=True)
class Fitted:
    """What of the given tensors the model takes."""

    tensors: dict[str, Array]
    """By the first of a weight's names, in the model's shapes."""
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    reshaped: tuple[str, ...]


def start_model(
    backend: Backend, model: object, signature: Signature, start: StartWeights
) -> tuple[object, Started]:
    """``model`` with the weights of ``start`` in it, and what came of it.

    Raises ModelError where the files are not what they were, or nothing or the wrong thing fits.
    """
    given = read_start(start)
    if start.kind == "safetensors" and not start.rename:
        given = backend.library_tensors(model, Path(start.folder)) or given
    fitted = fit(backend.weights(model, signature), given, start)
    return backend.put_weights(model, fitted.tensors), Started(
        reference=start.reference,
        kind=start.kind,
        digest=start.digest,
        loaded=len(fitted.tensors),
        fresh=fitted.fresh,
        unused=fitted.unused,
        reshaped=fitted.reshaped,
    )


def read_start(start: StartWeights) -> dict[str, Array]:
    """Every tensor by its name in the files; bfloat16 comes as float32.

    Raises ModelError for a file that is damaged or no longer the one that was found.
    """
    folder = Path(start.folder)
    if start.kind == "checkpoint":
        found = read_weights(folder, start.files).tensors
        return {name.removeprefix("model."): array for name, array in found.items()}
    tensors: dict[str, Array] = {}
    for file, digest in start.files.items():
        path = folder / file
        try:
            if digest_file(path) != digest:
                raise _unreadable(path, "it was changed since the training began")
            tensors |= {} if file.endswith((".json", ".data")) else _read(path, start.kind)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    return tensors


def _read(path: Path, kind: str) -> Mapping[str, Array]:
    if kind == "safetensors":
        return open_tensors(path)
    import onnx  # only here: a worker that trains need not wait for it
    from onnx import numpy_helper

    try:
        graph = onnx.load(path).graph
    except Exception as error:  # protobuf's, whose types are its own
        raise ValueError(f"it is no whole ONNX file: {error}") from error
    found = {}
    for item in graph.initializer:
        array = numpy_helper.to_array(item)
        found[item.name] = array if array.dtype.kind in "fiub" else array.astype("float32")
    return found


def _unreadable(path: Path, why: str) -> ModelError:
    return ModelError(
        f"model.weights: {path} cannot be used: {why}",
        "name a whole safetensors file, ONNX file, checkpoint or folder of these",
    )


def fit(own: Sequence[Weight], given: Mapping[str, Array], start: StartWeights) -> Fitted:
    """Which tensor of ``given`` goes where in the model, whose weights are ``own``.

    Raises ModelError for a pattern or a renaming that meets nothing, a shape that differs and is not
    named in ``model.fresh``, and where nothing fits at all.
    """
    names = [name for weight in own for name in weight.names]
    _check_patterns(names, start.fresh)
    renamed = _renamed(given, start.rename)
    tensors: dict[str, Array] = {}
    fresh, reshaped, wrong, used = [], [], [], set()
    for weight in own:
        first = weight.names[0]
        there = [name for name in weight.names if name in renamed]
        asked = any(fnmatchcase(n, pattern) for n in weight.names for pattern in start.fresh)
        used |= set() if asked else set(there)
        if asked or not there:
            fresh.append(first)
            continue
        array = given[renamed[there[0]]]
        if array.shape == weight.shape:
            tensors[first] = array
        elif _long_axes(array.shape) == _long_axes(weight.shape):
            tensors[first] = array.reshape(weight.shape)
            reshaped.append(first)
        else:
            wrong.append((first, weight.shape, array.shape))
    if wrong:
        raise _wrong_shapes(wrong, start)
    if not tensors:
        raise _nothing_fits(names, given, start)
    unused = tuple(old for name, old in renamed.items() if name not in used)
    return Fitted(tensors, tuple(fresh), unused, tuple(reshaped))


def _long_axes(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _check_patterns(names: Sequence[str], patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = did_you_mean(pattern.rstrip(".*"), names)
            raise ModelError(
                f"model.fresh has {pattern!r}, which no weight of the model is called{hint}",
                f"its weights are: {_some(names)}",
            )


def _renamed(given: Mapping[str, Array], rename: Mapping[str, str]) -> dict[str, str]:
    """Name in the model to name in the file."""
    found: dict[str, str] = {}
    met = set()
    for name in given:
        olds = [old for old in rename if name.startswith(old)]
        new = name
        if olds:
            old = max(olds, key=len)  # the longest says most
            met.add(old)
            new = rename[old] + name.removeprefix(old)
        if new in found:
            raise ModelError(
                f"model.rename makes both {found[new]!r} and {name!r} to {new!r}",
                "rename each to a name of its own",
            )
        found[new] = name
    for old in rename:
        if old not in met and not any(name.startswith(old) for name in given):
            close = nearest(old.rstrip("."), sorted({n.rpartition(".")[0] for n in given}))
            hint = f"; did you mean {close + '.'!r}?" if close else ""
            raise ModelError(
                f"model.rename has {old!r}, with which no name in the file begins{hint}",
                f"its names are: {_some(list(given))}",
            )
    return found


def _wrong_shapes(
    wrong: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]], start: StartWeights
) -> ModelError:
    told = "; ".join(
        f"{name} is {_shape(own)} in the model and {_shape(there)} in the file"
        for name, own, there in wrong[:_SHOWN]
    )
    turned = any(sorted(own) == sorted(there) for _, own, there in wrong)
    mend = f"build the model as the file's was, or let these begin anew: model.fresh = [{_list([n for n, _, _ in wrong])}]"
    if turned:
        mend += "; another framework keeps matrices the other way round: turn them in a script of your own"
    return ModelError(f"the weights of {start.reference} do not fit: {told}", mend)


def _nothing_fits(
    names: Sequence[str], given: Mapping[str, Array], start: StartWeights
) -> ModelError:
    pair = _likely_renaming(names, list(given))
    if pair is not None and dict([pair]) != start.rename:
        mend = f'try model.rename = {{ "{pair[0]}" = "{pair[1]}" }}'
    else:
        mend = (
            'say how the names are to be read: model.rename = { "old beginning" = "new beginning" }'
        )
    return ModelError(
        f"nothing of {start.reference} fits the model: it has {_some(list(given))}; "
        f"the model has {_some(names)}",
        mend,
    )


def _likely_renaming(names: Sequence[str], given: Sequence[str]) -> tuple[str, str] | None:
    """The beginning that is different in most pairs of names with the same end."""
    ends: dict[str, list[str]] = {}
    for name in names:
        ends.setdefault(_end(name, 2), []).append(name)
    pairs: Counter[tuple[str, str]] = Counter()
    for old in given:
        for new in ends.get(_end(old, 2), ()):
            common = 0
            while common < min(len(old), len(new)) and old[-1 - common] == new[-1 - common]:
                common += 1
            pair = old[: len(old) - common], new[: len(new) - common]
            pairs[pair] += 1
    if not pairs:
        return None
    return max(pairs, key=lambda pair: (pairs[pair], -len(pair[0]) - len(pair[1])))


def _end(name: str, parts: int) -> str:
    return ".".join(name.replace("/", ".").split(".")[-parts:])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "nothing") + more


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "one number"


def _list(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names[:_SHOWN])
