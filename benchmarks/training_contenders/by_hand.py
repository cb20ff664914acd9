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
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

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


class Batches(Samples):
    """A whole batch at once, which a DataLoader asks for where a dataset has ``__getitems__``."""

    def __getitems__(self, at: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return self[at]


def as_it_is(batch: Any) -> Any:
    return batch


def load(turn: Turn, sampler: Sampler[int] | None = None) -> DataLoader[Any]:
    """Batches, shuffled, or in the order of ``sampler``."""
    tuned = "tuned" in turn.options
    return DataLoader(
        Batches(turn) if tuned else Samples(turn),
        batch_size=turn.share,
        shuffle=sampler is None,
        sampler=sampler,
        drop_last=True,
        collate_fn=as_it_is if tuned else None,
    )


def laid_out(it: Any, turn: Turn) -> Any:
    """A model or its inputs in the memory format that suits the work."""
    if "tuned" in turn.options and turn.work.name == "cnn":
        return it.to(memory_format=torch.channels_last)
    return it


def optimizer_of(model: nn.Module, turn: Turn) -> torch.optim.Optimizer:
    fused = True if "tuned" in turn.options else None
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=fused)


def train(turn: Turn) -> None:
    sampler = DistributedSampler(Samples(turn)) if turn.workers > 1 else None
    loader, model = load(turn, sampler), laid_out(build(turn.work), turn)
    if turn.workers > 1:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = optimizer_of(model, turn)
    if "compiled" in turn.options:
        model = torch.compile(model)
    loss_of, watch = nn.CrossEntropyLoss(), Watch(turn)
    for epoch in range(turn.epochs):
        if sampler is not None:
            sampler.set_epoch(epoch)
        for batch, targets in loader:
            loss = loss_of(model(laid_out(batch, turn)), targets)
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
