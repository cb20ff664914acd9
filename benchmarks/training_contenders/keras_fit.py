"""Keras as its documentation teaches it: a functional model, a ``tf.data`` pipeline, ``compile`` and ``fit``.

The first option is the backend: ``tensorflow``, ``jax`` or ``torch``. The others: ``jit`` (compile by XLA; else what
Keras chooses), ``many`` (32 steps an execution), ``arrays`` (``fit`` gets arrays in memory). One process: with two, ``fit``
of Keras 3.15 under TensorFlow 2.21's MultiWorkerMirroredStrategy ends in "unsupported type PerReplica".
"""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from benchmarks.training_work import (
    DECAY,
    MEAN,
    RATE,
    STD,
    Turn,
    read_data,
    read_turn,
    report,
)

MANY = 32
_TURN = read_turn()
os.environ["KERAS_BACKEND"] = _TURN.options[0]  # before Keras is imported
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from benchmarks.keras_models import build  # noqa: E402


def data_of(turn: Turn) -> Any:
    inputs, targets = read_data(turn.place, last=True)
    mean, std = tf.constant(MEAN), tf.constant(STD)

    def normalised(x: Any, y: Any) -> Any:
        return (tf.cast(x, tf.float32) / 255 - mean) / std, y

    data = tf.data.Dataset.from_tensor_slices((inputs, targets))
    data = data.shuffle(len(targets)).batch(turn.work.batch, drop_remainder=True)
    if turn.work.name == "cnn":
        data = data.map(normalised, num_parallel_calls=tf.data.AUTOTUNE)
    return data.repeat().prefetch(tf.data.AUTOTUNE)


EPOCHS = 3
"""Timed of one ``fit``, after one that is the warm-up."""


class Clock(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == EPOCHS:
            self.seconds, self.loss = time.perf_counter() - self.began, float(logs["loss"])


def steps_of(turn: Turn) -> int:
    """Of an epoch: a whole number of executions."""
    if "arrays" in turn.options:
        return turn.work.samples // turn.work.batch
    unit = MANY if "many" in turn.options else 1
    return max(1, turn.steps // EPOCHS // unit) * unit


def fit_arrays(model: Any, turn: Turn, clock: Clock) -> None:
    """The whole data in memory as float32; pictures were normalised before."""
    inputs, targets = (np.array(values) for values in read_data(turn.place, last=True))
    if turn.work.name == "cnn":
        inputs = ((inputs.astype(np.float32) / 255 - MEAN) / STD).astype(np.float32)
    asked = {"epochs": 1 + EPOCHS, "batch_size": turn.work.batch}
    model.fit(inputs, targets, **asked, verbose=0, callbacks=[clock])


def train(turn: Turn) -> None:
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if turn.workers > 1 else None
    with strategy.scope() if strategy else nullcontext():
        model = build(turn.work.name)
        model.compile(
            optimizer=keras.optimizers.AdamW(RATE, weight_decay=DECAY),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=True if "jit" in turn.options else "auto",
            steps_per_execution=MANY if "many" in turn.options else 1,
        )
    clock = Clock()
    if "arrays" in turn.options:
        fit_arrays(model, turn, clock)
    else:
        asked = {"epochs": 1 + EPOCHS, "steps_per_epoch": steps_of(turn)}
        model.fit(data_of(turn), **asked, verbose=0, callbacks=[clock])
    turn = replace(turn, steps=EPOCHS * steps_of(turn))
    if (
        "task" not in os.environ.get("TF_CONFIG", "")
        or json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0
    ):
        report(turn, clock.seconds, clock.loss, jit=str(model.jit_compile))


def start_workers(turn: Turn) -> None:
    """One process for each worker, told of the others by TF_CONFIG."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(turn.workers)]
    hosts = [f"127.0.0.1:{place.getsockname()[1]}" for place in sockets]
    for place in sockets:
        place.close()
    workers = []
    for index in range(turn.workers):
        config = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(config), "OMP_NUM_THREADS": "1"}
        workers.append(
            subprocess.Popen([sys.executable, "-m", __spec__.name, *sys.argv[1:]], env=environment)
        )
    codes = [worker.wait() for worker in workers]
    sys.exit(max(map(abs, codes)))


if __name__ == "__main__":
    if _TURN.workers > 1 and "TF_CONFIG" not in os.environ:
        start_workers(_TURN)
    train(_TURN)
