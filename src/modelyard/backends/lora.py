"""Which layers get low-rank adapters (Hu et al., LoRA, ICLR 2022): the same words for every framework."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from modelyard.backends.base import Lora
from modelyard.spec.errors import ModelError, did_you_mean

_SHOWN = 8


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern is ``name``, or its end from a dot on: ``attn.*`` also meets ``blocks.0.attn.query``."""
    name = name.replace("/", ".")
    return any(fnmatchcase(name, p) or fnmatchcase(name, f"*.{p}") for p in patterns)


def chosen_layers(able: Sequence[str], lora: Lora) -> list[str]:
    """Of the layers that can be adapted those that ``lora`` asks for and does not train whole.

    Raises ModelError for a pattern that meets none, naming what there is.
    """
    for pattern in lora.match:
        if not any(matches(name, [pattern]) for name in able):
            hint = did_you_mean(pattern.rstrip(".*"), able)
            more = f" and {len(able) - _SHOWN} more" if len(able) > _SHOWN else ""
            raise ModelError(
                f"train.lora.match has {pattern!r}, which no layer that can be adapted is called{hint}",
                f"these can: {', '.join(able[:_SHOWN]) or 'none'}{more}",
            )
    found = [
        name
        for name in able
        if matches(name, lora.match) and not matches(f"{name}.weight", lora.also)
    ]
    if not found:
        raise ModelError(
            "train.lora adapts nothing: each layer that it names is trained whole",
            "take layers out of train.lora.also and model.fresh, or leave train.lora out",
        )
    return found


def check_also(names: Sequence[str], lora: Lora) -> None:
    """Raises ModelError for a pattern of weights to be trained whole that meets none of ``names``."""
    for pattern in lora.also:
        if not any(matches(name, [pattern]) for name in names):
            hint = did_you_mean(pattern.rstrip(".*"), names)
            raise ModelError(
                f"train.lora.also has {pattern!r}, which no weight of the model is called{hint}",
                f"its weights are: {', '.join(names[:_SHOWN])}",
            )


def said(layers: int, trained: int, total: int) -> str:
    """For people: what is trained."""
    return (
        f"LoRA on {layers} layer{'s' if layers != 1 else ''}: {trained:,} of {total:,} numbers are "
        f"trained ({100 * trained / max(total, 1):.2g} %)"
    )


def other_base() -> ModelError:
    """The frozen weights are not those that the adapters were trained on."""
    return ModelError(
        "the checkpoint's adapters were trained on other weights than the model has now",
        "put the start weights and the model's code back as they were, or start a new run",
    )
