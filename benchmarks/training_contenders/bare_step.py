"""Steps and nothing else, on batches that lie in memory as tensors: what steps alone could reach.

All of the data is there, cut into batches once, in the form that the kind wants; they are taken in turn. One batch
again and again would be fitted at once, and then flatters: the branches of max-pooling and ReLU are
foreseen, and everything stays in the caches. No shuffling, no records, no meetings.

Options say what kind: ``channels-last``, ``fused`` (AdamW, by ``optimizer.step()``), ``direct`` (the same kernel,
called without ``optimizer.step()``, by the product's own code), ``onednn`` or ``mixed`` (large dense layers by the kernels that
ours may choose), ``attention`` (its kernels of attention), ``compiled``, ``bytes`` (pictures come as they are stored and are normalised in the step,
as ours do), ``parts`` (say where the time goes); with several workers it is bare DistributedDataParallel.
"""

import itertools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import nn

from benchmarks.training_contenders.by_hand import Samples, _Group
from benchmarks.training_parts import Laps
from benchmarks.training_work import DECAY, RATE, Turn, Watch, build, read_turn, report


def optimize(model: nn.Module, options: tuple[str, ...]) -> Callable[[], Any]:
    """One update of the weights, after which there are no gradients."""
    fused = True if "fused" in options else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=fused)
    if "direct" in options:
        from modelyard.backends.pytorch_optimizer import Update

        for group in optimizer.param_groups:
            group["scale"] = 1.0  # of the rate, which the product gives each group
        update = Update(optimizer)
        return lambda: update(RATE)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return step


def batches_of(turn: Turn) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The data of this worker, each tensor by itself."""
    samples, rank = Samples(turn), int(os.environ.get("RANK", "0"))
    mine = range(rank * turn.share, turn.work.samples - turn.work.batch + 1, turn.work.batch)
    batches = []
    for start in mine:
        inputs, targets = samples[list(range(start, start + turn.share))]
        if stored(turn):
            inputs = torch.from_numpy(samples.inputs[start : start + turn.share].copy())
        if "channels-last" in turn.options and samples.image:
            inputs = inputs.to(memory_format=torch.channels_last)
        batches.append((inputs, targets))
    return batches


def stored(turn: Turn) -> bool:
    return "bytes" in turn.options and turn.work.name == "cnn"


def finish(turn: Turn) -> Callable[[torch.Tensor], torch.Tensor]:
    """To model form."""
    if not stored(turn):
        return lambda inputs: inputs
    samples = Samples(turn)
    scale, shift = 1 / (255 * samples.std), -samples.mean / samples.std
    return lambda pixels: pixels.float().mul_(scale).add_(shift)


def train(turn: Turn) -> None:
    model: Any = build(turn.work)
    if "channels-last" in turn.options and turn.work.name == "cnn":
        model = model.to(memory_format=torch.channels_last)
    if turn.workers > 1:
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    update = optimize(model, turn.options)
    if "compiled" in turn.options:
        model = torch.compile(model)
    watch, laps = Watch(turn), Laps(turn.warm_up)
    lap = laps.lap if "parts" in turn.options else lambda _part: None
    in_model_form = finish(turn)
    for pixels, targets in itertools.cycle(batches_of(turn)):
        lap("loop")
        inputs = in_model_form(pixels)
        lap("inputs")
        loss = nn.functional.cross_entropy(model(inputs), targets)
        lap("forward")
        loss.backward()
        lap("backward")
        update()
        lap("optimizer")
        laps.step()
        if watch.tick():
            break
    if int(os.environ.get("RANK", "0")) == 0:
        report(turn, watch.seconds, float(loss), parts=laps.found())


def kernels(turn: Turn) -> AbstractContextManager[Any]:
    stack = ExitStack()
    for name in turn.options:
        if name in ("onednn", "mixed"):
            from modelyard.backends.pytorch_linear import KINDS

            stack.enter_context(KINDS[name]())
    if "attention" in turn.options:
        from modelyard.backends.pytorch_attention import Attention

        stack.enter_context(Attention())
    return stack


if __name__ == "__main__":
    chosen = read_turn()
    with _Group() if chosen.workers > 1 else nullcontext(), kernels(chosen):
        train(chosen)
