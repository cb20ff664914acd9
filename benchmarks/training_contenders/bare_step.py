"""Steps on one batch that is in memory already, with no data, no records and no meetings: what steps alone could reach.

Options say what kind: ``channels-last``, ``fused`` (AdamW, by ``optimizer.step()``), ``direct`` (the same kernel,
called without ``optimizer.step()``, by the product's own code), ``compiled``, ``bytes`` (pictures come as they are
stored and are normalised in the step, as ours do), ``parts`` (say where the time goes); with several workers
it is bare DistributedDataParallel.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
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

        update = Update(optimizer)
        return lambda: update(RATE)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return step


def batch_of(turn: Turn) -> Callable[[], torch.Tensor]:
    """The same batch each time; as bytes, normalised each time."""
    samples, options = Samples(turn), turn.options
    pixels = torch.from_numpy(samples.inputs[: turn.share].copy())
    inputs, _ = samples[list(range(turn.share))]
    if "channels-last" in options and samples.image:
        inputs = inputs.to(memory_format=torch.channels_last)
        pixels = pixels.to(memory_format=torch.channels_last)
    if not ("bytes" in options and samples.image):
        return lambda: inputs
    scale, shift = 1 / (255 * samples.std), -samples.mean / samples.std
    return lambda: pixels.float().mul_(scale).add_(shift)


def train(turn: Turn) -> None:
    model: Any = build(turn.work)
    if "channels-last" in turn.options and turn.work.name == "cnn":
        model = model.to(memory_format=torch.channels_last)
    batch, (_, targets) = batch_of(turn), Samples(turn)[list(range(turn.share))]
    if turn.workers > 1:
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    update = optimize(model, turn.options)
    if "compiled" in turn.options:
        model = torch.compile(model)
    watch, laps, over = Watch(turn), Laps(turn.warm_up), False
    lap = laps.lap if "parts" in turn.options else lambda _part: None
    while not over:
        lap("loop")
        inputs = batch()
        lap("inputs")
        loss = nn.functional.cross_entropy(model(inputs), targets)
        lap("forward")
        loss.backward()
        lap("backward")
        update()
        lap("optimizer")
        laps.step()
        over = watch.tick()
    if int(os.environ.get("RANK", "0")) == 0:
        report(turn, watch.seconds, float(loss), parts=laps.found())


if __name__ == "__main__":
    chosen = read_turn()
    with _Group() if chosen.workers > 1 else nullcontext():
        train(chosen)
