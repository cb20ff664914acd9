"""Hugging Face Accelerate as its documentation teaches it: ``prepare`` and ``backward``, started by ``torchrun``.

``accelerate launch --cpu --num_processes 2`` of 1.15 starts a single process here, which does half the work. With the option
``tuned`` it has the data, memory format and optimizer of the loop by hand of that name.
"""

from accelerate import Accelerator
from torch import nn

from benchmarks.training_contenders.by_hand import laid_out, load, optimizer_of
from benchmarks.training_work import Turn, Watch, build, read_turn, report


def train(turn: Turn) -> None:
    accelerator = Accelerator(cpu=True)
    if accelerator.num_processes != turn.workers:
        raise SystemExit(f"{accelerator.num_processes} processes, not {turn.workers}")
    model = laid_out(build(turn.work), turn)
    optimizer, loader = optimizer_of(model, turn), load(turn)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    loss_of, watch = nn.CrossEntropyLoss(), Watch(turn)
    for _ in range(turn.epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = loss_of(model(laid_out(inputs, turn)), targets)
            accelerator.backward(loss)
            optimizer.step()
            if watch.tick():
                if accelerator.is_main_process:
                    report(turn, watch.seconds, float(loss))
                accelerator.end_training()
                return


if __name__ == "__main__":
    train(read_turn())
