"""Ray Train as its documentation teaches it: ``TorchTrainer`` around a loop with ``prepare_model`` and ``prepare_data_loader``.

With the option ``tuned`` it has the data, memory format and optimizer of the loop by hand of that name.
Its only worker gets all cores; two get one each (Ray sets the threads of a worker by its cores).
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from torch import nn

from benchmarks.training_contenders.by_hand import laid_out, load, optimizer_of
from benchmarks.training_work import Turn, Watch, build, read_turn, report


def loop(config: dict[str, Any]) -> None:
    turn: Turn = config["turn"]
    model = ray.train.torch.prepare_model(laid_out(build(turn.work), turn))
    optimizer = optimizer_of(model, turn)
    loader = ray.train.torch.prepare_data_loader(load(turn))
    loss_of, watch = nn.CrossEntropyLoss(), Watch(turn)
    for epoch in range(turn.epochs):
        if turn.workers > 1:
            loader.sampler.set_epoch(epoch)
        for inputs, targets in loader:
            loss = loss_of(model(laid_out(inputs, turn)), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if watch.tick():
                if ray.train.get_context().get_world_rank() == 0:
                    found = {"seconds": watch.seconds, "loss": float(loss)}
                    Path(config["answer"]).write_text(json.dumps(found))
                return


def train(turn: Turn) -> None:
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False)
        answer = Path(folder) / "answer.json"
        trainer = ray.train.torch.TorchTrainer(
            loop,
            train_loop_config={"turn": turn, "answer": str(answer)},
            scaling_config=ray.train.ScalingConfig(
                num_workers=turn.workers, resources_per_worker={"CPU": cores // turn.workers}
            ),
            run_config=ray.train.RunConfig(storage_path=folder),
        )
        trainer.fit()
        found = json.loads(answer.read_text())
        ray.shutdown()
    report(turn, found["seconds"], found["loss"])


if __name__ == "__main__":
    train(read_turn())
