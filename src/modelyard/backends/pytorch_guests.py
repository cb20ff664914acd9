"""Models written for Lightning or transformers, taken as they are and recognised without importing either.

- A ``LightningModule``: its ``forward`` gives the outputs that are judged and exported. Where it has a
  ``training_step`` of its own, that gives the loss: it is called with ``((inputs, targets), 0)`` and must
  return the mean over them. Its optimizers, schedulers, data loaders and hooks are not asked: what
  ``[train]`` says holds, since schedule, tuning and exact resume rest on it.
- A transformers model: called with its ``main_input_name`` (``pixel_values``, ``input_ids``, …; token
  numbers become integers, and padding is masked), of whose answer the ``logits`` are taken.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from modelyard.spec.errors import ModelError

_LIGHTNING, _TRANSFORMERS = ("lightning", "pytorch_lightning"), ("transformers",)


class Guest(nn.Module):
    """The model as a step calls it: inputs in, outputs out, or with targets the guest's own mean loss.

    It is called instead of the model, and holds no weights: names in a checkpoint are the model's own.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[torch.Tensor], Any],
        own_loss: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self._forward, self.own_loss = forward, own_loss

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        if targets is None or self.own_loss is None:
            return self._forward(inputs)
        return self.own_loss(inputs, targets)


def take_in(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """What to call for ``model``, and notes for people; a plain model is called itself.

    Raises ModelError for a guest that cannot be trained by a loop that is not its own.
    """
    if _descends(model, "LightningModule", _LIGHTNING):
        return _lightning(model)
    if is_transformers(model):
        return Guest(model, _transformers(model)), ()
    return model, ()


def is_transformers(model: object) -> bool:
    """Whether it is a model of that library, which is not imported for that."""
    return _descends(model, "PreTrainedModel", _TRANSFORMERS)


def _descends(model: object, name: str, packages: tuple[str, ...]) -> bool:
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] in packages
        for base in type(model).__mro__
    )


def _lightning(model: Any) -> tuple[nn.Module, tuple[str, ...]]:
    if not model.automatic_optimization:
        raise ModelError(
            f"{type(model).__qualname__} optimizes by hand (automatic_optimization = False)",
            "let it optimize automatically; training_step then only returns the loss",
        )
    # Its log() wants a Trainer; progress and metrics come from the task here.
    model.log = model.log_dict = _say_nothing
    notes = []
    if _defines(model, "configure_optimizers"):
        notes.append(
            "the LightningModule's configure_optimizers is not used: "
            "[train.optimizer] and [train.schedule] say how it is trained"
        )
    if not _defines(model, "training_step"):
        return Guest(model, model), tuple(notes)
    notes.append("the training loss is the one of the LightningModule's training_step")
    # Counted now: sharding puts a method of other arguments in its place.
    takes = len(inspect.signature(model.training_step).parameters)
    return Guest(model, model, lambda *batch: _loss_of(model, batch, takes)), tuple(notes)


def _defines(model: object, name: str) -> bool:
    """Whether the user wrote that method, and not Lightning."""
    owner = next((base for base in type(model).__mro__ if name in vars(base)), object)
    return owner.__module__.partition(".")[0] not in _LIGHTNING


def _loss_of(model: Any, batch: tuple[torch.Tensor, ...], takes: int) -> torch.Tensor:
    step = model.training_step
    answer = step(batch, 0) if takes > 1 else step(batch)
    loss = answer.get("loss") if isinstance(answer, dict) else answer
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise ModelError(
            f"training_step returned {type(answer).__qualname__}, not one loss",
            'return the mean loss as a tensor, or a dictionary with "loss"',
        )
    return loss.reshape(())


def _say_nothing(*_arguments: object, **_named: object) -> None:
    """In place of Lightning's log and log_dict."""


def _transformers(model: Any) -> Callable[[torch.Tensor], Any]:
    name = model.main_input_name
    tokens = name.endswith("input_ids")
    padding: Any = getattr(model.config, "pad_token_id", None)
    masked = tokens and padding is not None and _takes(model, "attention_mask")

    def forward(inputs: torch.Tensor) -> Any:
        given = {name: inputs.long() if tokens else inputs}
        if masked:
            mask = given[name].ne(padding)
            # The first token always counts: a row of nothing but padding has no mean.
            given["attention_mask"] = torch.cat(
                [torch.ones_like(mask[:, :1]), mask[:, 1:]], 1
            ).long()
        answer = model(**given)
        logits = getattr(answer, "logits", None)
        if logits is None:
            raise ModelError(
                f"{type(model).__qualname__} gives no logits: it has no head for a task",
                "use a model such as AutoModelForSequenceClassification or …ForImageClassification",
            )
        return logits.float()

    return forward


def _takes(model: nn.Module, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters
