"""A loop written by hand after the tutorials of PyTorch: Dataset, DataLoader, DistributedDataParallel by torchrun.

Options: ``tuned`` (whole batches are read by index, normalised at once; channels-last; fused AdamW: what
the performance guides add), ``compiled`` (``torch.compile``).
"""

import gc
import os
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
)

from benchmarks.training_work import (
    DECAY,
    MEAN,
    RATE,
    STD,
    Turn,
    Watch,
    build,
    read_data,
    read_turn,
    report,
)


class Samples(Dataset[Any]):
    """A sample by its number, or a whole batch by its numbers; images are normalised on the way."""

    def __init__(self, turn: Turn) -> None:
        self.inputs, self.targets = read_data(turn.place)
        self.image = turn.work.name == "cnn"
        self.mean = torch.tensor(MEAN).reshape(3, 1, 1)
        self.std = torch.tensor(STD).reshape(3, 1, 1)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, at: Any) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.from_numpy(np.array(self.inputs[at]))
        if self.image:
            inputs = (inputs.float() / 255 - self.mean) / self.std
        return inputs, torch.as_tensor(self.targets[at])


def load(turn: Turn, *, tuned: bool) -> DataLoader[Any]:
    data = Samples(turn)
    sampler: Sampler[int] = RandomSampler(data)
    if turn.workers > 1:
        sampler = DistributedSampler(data)
    if tuned:
        batches = BatchSampler(sampler, turn.share, drop_last=True)
        return DataLoader(data, sampler=batches, batch_size=None)
    return DataLoader(data, sampler=sampler, batch_size=turn.share, drop_last=True)


def train(turn: Turn) -> None:
    tuned, compiled = "tuned" in turn.options, "compiled" in turn.options
    loader, model = load(turn, tuned=tuned), build(turn.work)
    if tuned and turn.work.name == "cnn":
        model = model.to(memory_format=torch.channels_last)
    if turn.workers > 1:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, weight_decay=DECAY, fused=True if tuned else None
    )
    if compiled:
        model = torch.compile(model)
    loss_of, watch = nn.CrossEntropyLoss(), Watch(turn)
    for epoch in range(turn.epochs):
        if isinstance(loader.sampler, DistributedSampler):
            loader.sampler.set_epoch(epoch)
        for batch, targets in loader:
            channels_last = tuned and turn.work.name == "cnn"
            inputs = batch.to(memory_format=torch.channels_last) if channels_last else batch
            loss = loss_of(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if watch.tick():
                if int(os.environ.get("RANK", "0")) == 0:
                    report(turn, watch.seconds, float(loss))
                return


class _Group:
    def __enter__(self) -> None:
        distributed.init_process_group("gloo")

    def __exit__(self, *_: object) -> None:
        gc.collect()  # a wrapped model that outlives its group now and then aborts the interpreter's exit
        distributed.destroy_process_group()


if __name__ == "__main__":
    chosen = read_turn()
    with _Group() if chosen.workers > 1 else nullcontext():
        train(chosen)
