"""A Keras model's step on PyTorch, which changes the model's own parameters."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modelyard.backends.keras_model import Subject
from modelyard.backends.keras_optimizer import RATE, STEPS, Limits
from modelyard.backends.parameter_rules import Treatment
from modelyard.backends.sampled_values import places, stride
from modelyard.spec.signature import Signature
from modelyard.spec.work import World

Tensor = Any
Array = NDArray[Any]
_HAS_KERNELS = hasattr(torch, "_fused_adamw_") and hasattr(torch, "_fused_adam_")
"""Of another release of torch they may be gone; then the rule itself does every step."""


@contextlib.contextmanager
def computing(world: World, threads: int) -> Iterator[None]:  # noqa: ARG001
    """Until the end; then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Forward(torch.nn.Module):
    """A model as the pytorch backend's writer calls it."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self._subject = subject

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self._subject.model(self._subject.prepared(inputs), training=False)
        return outputs

    def __deepcopy__(self, known: object) -> "_Forward":
        return self  # a Keras model is not copied; being asked for its outputs does not change it


class Program:
    """See ``keras_tensorflow``; nothing is compiled."""

    can_compile = False

    def __init__(self, subject: Subject, *, compiled: bool) -> None:
        self._subject = subject
        self.variables = [v.value for v in subject.trainable]
        self.average: list[Tensor] = []
        self._fused = (
            subject.rule.adaptive
            and _HAS_KERNELS
            and all(v.is_contiguous() for v in self.variables)
        )
        self._alike: dict[Treatment, list[int]] = {}
        """Places of the weights that are treated so."""
        for place, treated in enumerate(subject.treated):
            self._alike.setdefault(treated, []).append(place)
        self.slots = [[torch.zeros_like(v) for _ in subject.rule.slots] for v in self.variables]

    def whole(
        self,
        inputs: Array,
        answers: Sequence[Array],
        seeds: Array,
        size: float,
        factors: Array,
        limits: Limits,
        look: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        loss, gradients = self._loss_and_gradients(inputs, answers, seeds, size)
        seen = self._seen(gradients) if look else None
        return loss, self._update(gradients, factors, limits, look), seen

    def gradients(
        self, inputs: Array, answers: Sequence[Array], seeds: Array, size: float
    ) -> tuple[Tensor, Array]:
        loss, gradients = self._loss_and_gradients(inputs, answers, seeds, size)
        kept = [v.value for v in (*self._subject.statistics, *self._subject.others)]
        members = [*gradients, *(tensor.to(torch.float32) for tensor in kept)]
        return loss, torch.cat([member.detach().flatten() for member in members]).cpu().numpy()

    def apply(self, flat: Array, factors: Array, limits: Limits, look: bool) -> Tensor:
        kept = [*self._subject.statistics, *self._subject.others]
        members = [*self._subject.trainable, *kept]
        sizes = [int(np.prod(v.shape)) for v in members]
        device = self.variables[0].device
        parts = [
            part.reshape(tuple(v.shape))
            for part, v in zip(
                torch.split(torch.from_numpy(flat).to(device), sizes), members, strict=True
            )
        ]
        count = len(self.variables)
        for part, variable in zip(parts[count:], kept, strict=True):
            variable.assign(part.to(variable.value.dtype))
        return self._update(parts[:count], factors, limits, look)

    def outputs(self, inputs: Array) -> NDArray[np.float32]:
        with torch.no_grad():
            prepared = self._subject.prepared(self._tensor(inputs))
            outputs = self._subject.model(prepared, training=False)
        found: NDArray[np.float32] = outputs.to(torch.float32).cpu().numpy()
        return found

    def export(self, path: Path, signature: Signature) -> None:
        """By the pytorch backend's own writer."""
        from modelyard.backends.pytorch_export import export_onnx  # loads onnx

        export_onnx(_Forward(self._subject), path, signature)

    def begin_average(self) -> None:
        self.average = [v.detach().clone() for v in self.variables]

    @torch.no_grad()
    def follow(self, share: float) -> None:
        torch._foreach_lerp_(self.average, [v.detach() for v in self.variables], share)

    @torch.no_grad()
    def exchange(self) -> None:
        for held, weight in zip(self.average, self.variables, strict=True):
            kept = weight.clone()
            weight.copy_(held)
            held.copy_(kept)

    def settle(self) -> None:
        """The model's variables are the state: nothing to bring home."""

    def refresh(self) -> None:
        """The model's variables were set: nothing to fetch."""

    def _loss_and_gradients(
        self, inputs: Array, answers: Sequence[Array], seeds: Array, size: float
    ) -> tuple[Tensor, list[Tensor]]:
        subject = self._subject
        for place, state in enumerate(subject.seeds):
            state.assign(seeds[place])
        outputs = subject.model(subject.prepared(self._tensor(inputs)), training=subject.training)
        loss = subject.loss(outputs, [self._tensor(answer) for answer in answers], size)
        if subject.model.losses:
            loss = loss + sum(subject.model.losses) * (len(inputs) / size)
        found = torch.autograd.grad(loss, self.variables, allow_unused=True)
        gradients = [
            torch.zeros_like(variable) if gradient is None else gradient
            for variable, gradient in zip(self.variables, found, strict=True)
        ]
        return loss.detach(), gradients

    def _seen(self, gradients: list[Tensor]) -> Tensor:
        """Their sampled values, (values,)."""
        looked = [gradients[place].reshape(-1) for place in places(len(gradients))]
        return torch.cat([flat[:: stride(flat.numel())] for flat in looked])

    @torch.no_grad()
    def _update(
        self, gradients: list[Tensor], factors: Array, limits: Limits, look: bool
    ) -> Tensor:
        norm: Tensor = None
        if look or limits.norm is not None:
            norm = torch.nn.utils.get_total_norm(gradients)
        if limits.value is not None:
            bound = limits.value
            gradients = [torch.clamp(gradient, -bound, bound) for gradient in gradients]
        if limits.norm is not None:
            share = torch.clamp(limits.norm / (norm + 1e-6), max=1.0)
            gradients = [gradient * share for gradient in gradients]
        numbers = [float(number) for number in factors]
        if self._fused:
            self._adapt(gradients, numbers)
            return norm
        update = self._subject.rule.update
        members = zip(self.variables, gradients, self.slots, self._subject.treated, strict=True)
        for variable, gradient, slots, treated in members:
            weight, changed = update(variable, gradient, list(slots), numbers, treated)
            variable.copy_(weight)
            for slot, value in zip(slots, changed, strict=True):
                slot.copy_(value)
        return norm

    def _adapt(self, gradients: list[Tensor], factors: list[float]) -> None:
        """By PyTorch's own kernel: the same formula, one call for all weights that are treated alike."""
        rule = self._subject.rule
        kernel = torch._fused_adamw_ if rule.decoupled else torch._fused_adam_
        steps = torch.tensor(factors[STEPS], device=self.variables[0].device)
        for treated, members in self._alike.items():
            kernel(
                [self.variables[place] for place in members],
                # The kernel goes through memory in one order: a gradient must lie as its weight does.
                [gradients[place].contiguous() for place in members],
                [self.slots[place][0] for place in members],
                [self.slots[place][1] for place in members],
                [],
                [steps] * len(members),
                lr=factors[RATE] * treated.scale,
                beta1=rule.betas[0],
                beta2=rule.betas[1],
                weight_decay=treated.decay,
                eps=rule.epsilon,
                amsgrad=False,
                maximize=False,
            )

    def _tensor(self, array: Array) -> Tensor:
        if not (array.flags.writeable and array.flags.c_contiguous):
            array = np.array(array, order="C")
        return torch.from_numpy(array).to(self.variables[0].device)


def differentiate(
    function: Callable[..., Any], outputs: Array, targets: Array
) -> tuple[Array, Array | None]:
    """``function(outputs, targets)``, and the slope of its sum by the outputs, if it has one."""
    with torch.enable_grad():
        watched = torch.from_numpy(np.array(outputs)).requires_grad_()
        found = torch.as_tensor(function(watched, torch.from_numpy(np.array(targets))))
        slopes = None
        if found.requires_grad:
            (slopes,) = torch.autograd.grad(found.sum(), watched, allow_unused=True)
    return found.detach().numpy(), None if slopes is None else slopes.numpy()
