"""Lightning as its documentation teaches it: a LightningModule, a DataLoader, ``Trainer.fit``; no checkpoints, no logs.

With the option ``tuned`` it has the data, memory format and optimizer of the loop by hand of that name.
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from benchmarks.training_contenders.by_hand import laid_out, load, optimizer_of
from benchmarks.training_work import Turn, Watch, build, read_turn, report


class Module(LightningModule):
    def __init__(self, model: nn.Module, turn: Turn) -> None:
        super().__init__()
        self.model, self.turn = model, turn

    def training_step(self, batch: Any, _number: int) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.cross_entropy(self.model(laid_out(inputs, self.turn)), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer_of(self, self.turn)


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
    trainer.fit(Module(laid_out(build(turn.work), turn), turn), load(turn))
    if trainer.is_global_zero:
        report(turn, clock.watch.seconds, clock.loss)


if __name__ == "__main__":
    train(read_turn())
