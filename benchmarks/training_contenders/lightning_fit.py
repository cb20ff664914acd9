"""Lightning as its documentation teaches it: a LightningModule, a DataLoader, ``Trainer.fit``; no checkpoints, no logs."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.training_contenders.by_hand import Samples
from benchmarks.training_work import DECAY, RATE, Turn, Watch, build, read_turn, report


class Module(LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Any, _number: int) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.cross_entropy(self.model(inputs), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=RATE, weight_decay=DECAY)


class Clock(Callback):
    def __init__(self, turn: Turn) -> None:
        self.watch, self.loss = Watch(turn), 0.0

    def on_train_batch_end(self, trainer: Trainer, _module: Any, outputs: Any, *_: Any) -> None:
        if self.watch.tick():
            self.loss = float(outputs["loss"])


def train(turn: Turn) -> None:
    clock = Clock(turn)
    trainer = Trainer(
        accelerator="cpu",
        devices=turn.workers,
        strategy="ddp" if turn.workers > 1 else "auto",
        max_steps=turn.warm_up + turn.steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    loader = DataLoader(Samples(turn), batch_size=turn.share, shuffle=True, drop_last=True)
    trainer.fit(Module(build(turn.work)), loader)
    if trainer.is_global_zero:
        report(turn, clock.watch.seconds, clock.loss)


if __name__ == "__main__":
    train(read_turn())
