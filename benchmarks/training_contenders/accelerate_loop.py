"""Hugging Face Accelerate as its documentation teaches it: ``prepare`` and ``backward``, started by ``torchrun``.

``accelerate launch --cpu --num_processes 2`` of 1.15 starts a single process here, which does half the work."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.training_contenders.by_hand import Samples
from benchmarks.training_work import DECAY, RATE, Turn, Watch, build, read_turn, report


def train(turn: Turn) -> None:
    accelerator = Accelerator(cpu=True)
    if accelerator.num_processes != turn.workers:
        raise SystemExit(f"{accelerator.num_processes} processes, not {turn.workers}")
    model = build(turn.work)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    loader = DataLoader(Samples(turn), batch_size=turn.share, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    loss_of, watch = nn.CrossEntropyLoss(), Watch(turn)
    for _ in range(turn.epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = loss_of(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            if watch.tick():
                if accelerator.is_main_process:
                    report(turn, watch.seconds, float(loss))
                accelerator.end_training()
                return


if __name__ == "__main__":
    train(read_turn())
