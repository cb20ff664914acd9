"""Steps on one batch that is in memory already, with no data, no records and no meetings: what steps alone could reach.

Options say what kind: ``channels-last``, ``fused``, ``compiled``, ``bytes`` (pictures come as they are
stored and are normalised in the step, as ours do); with several workers it is bare DistributedDataParallel.
"""

import os
from contextlib import nullcontext

import torch
from torch import nn

from benchmarks.training_contenders.by_hand import Samples, _Group
from benchmarks.training_work import DECAY, RATE, Turn, Watch, build, read_turn, report


def train(turn: Turn) -> None:
    model, options = build(turn.work), turn.options
    samples = Samples(turn)
    inputs, targets = samples[list(range(turn.share))]
    stored = "bytes" in options and samples.image
    pixels = torch.from_numpy(samples.inputs[: turn.share].copy())
    scale, shift = 1 / (255 * samples.std), -samples.mean / samples.std
    if "channels-last" in options and turn.work.name == "cnn":
        model = model.to(memory_format=torch.channels_last)
        inputs = inputs.to(memory_format=torch.channels_last)
        pixels = pixels.to(memory_format=torch.channels_last)
    if turn.workers > 1:
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    fused = True if "fused" in options else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=fused)
    if "compiled" in options:
        model = torch.compile(model)
    watch, over = Watch(turn), False
    while not over:
        if stored:
            inputs = pixels.float().mul_(scale).add_(shift)
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        over = watch.tick()
    if int(os.environ.get("RANK", "0")) == 0:
        report(turn, watch.seconds, float(loss))


if __name__ == "__main__":
    chosen = read_turn()
    with _Group() if chosen.workers > 1 else nullcontext():
        train(chosen)
