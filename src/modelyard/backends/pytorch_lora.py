"""LoRA on a PyTorch model: peft's layers in place of the model's own, and merged again for an export."""

import copy
import hashlib
import re
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from modelyard.backends.base import Lora
from modelyard.backends.lora import check_also, chosen_layers, matches, other_base, said
from modelyard.spec.errors import MissingExtraError, ModelError

_ABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def add_adapters(model: nn.Module, lora: Lora) -> str:
    """Freeze ``model`` but for adapters of rank ``lora.rank``, and what is to be trained whole; what was done.

    Raises ModelError for patterns that meet nothing, MissingExtraError without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError(
            "train.lora needs the package 'peft' for PyTorch", "lora"
        ) from error
    names = [name for name, _ in model.named_parameters()]
    check_also(names, lora)
    total = sum(parameter.numel() for parameter in model.parameters())
    layers = chosen_layers(_able(model), lora)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=0.0,
        bias="none",
        target_modules="|".join(map(re.escape, layers)),
    )
    # Evaluation would take a path past the layers, straight to the weights below the adapters.
    torch.backends.mha.set_fastpath_enabled(False)
    also = [name for name in names if matches(name, lora.also)]
    kept = {id(p) for name, p in model.named_parameters() if name in also}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about models that are not transformers'
        try:
            inject_adapter_in_model(config, model)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ModelError(
                f"the model cannot be adapted: {error}", "name other layers in train.lora.match"
            ) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name or id(parameter) in kept
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return said(len(layers), trained, total)


def _able(model: nn.Module) -> list[str]:
    """Layers with a forward of their own: not those inside ``nn.MultiheadAttention``, which reads their weights."""
    inside = {
        id(part)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        for part in module.modules()
    }
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _ABLE) and id(module) not in inside
    ]


@dataclass(frozen=True)
class Adapted:
    """Of a model with adapters."""

    names: frozenset[str]
    """In ``state_dict``: what a training changes, and a checkpoint holds."""
    base: str
    """Digest of what is frozen: adapters fit only the weights that they were trained on."""

    @classmethod
    def of(cls, model: nn.Module) -> "Adapted":
        """All workers' weights must be equal by now, and whole."""
        return cls(_changing(model), _base_digest(model))

    def numbers(self) -> dict[str, str]:
        """For a snapshot."""
        return {"base": self.base}

    def check(self, numbers: dict[str, Any]) -> None:
        """Raises ModelError where a snapshot was made over other frozen weights."""
        if numbers.get("base", self.base) != self.base:
            raise other_base()


def _changing(model: nn.Module) -> frozenset[str]:
    """What is trained, and buffers."""
    frozen = {
        name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad
    }
    return frozenset(model.state_dict().keys() - frozen)


def _base_digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} ".encode())
            whole = parameter.detach().contiguous().cpu().reshape(-1)
            digest.update(whole.view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def merged(model: nn.Module) -> nn.Module:
    """A copy with the adapters' share in the weights and the model's own layers in their places."""
    whole = copy.deepcopy(model)
    for name, layer in list(whole.named_modules()):
        if hasattr(layer, "merge") and hasattr(layer, "get_base_layer"):
            adapted: Any = layer
            adapted.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(whole.get_submodule(parent), attribute, adapted.get_base_layer())
    return whole
