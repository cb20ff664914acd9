"""A loop written by hand in JAX after its documentation: one ``jax.jit`` step over Optax, batches from arrays in memory."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.jax_models import build
from benchmarks.training_work import (
    DECAY,
    MEAN,
    RATE,
    STD,
    Turn,
    Watch,
    read_data,
    read_turn,
    report,
)


def train(turn: Turn) -> None:
    graph, weights = nnx.split(build(turn.work.name))
    optimizer = optax.adamw(RATE, weight_decay=DECAY)
    held = optimizer.init(weights)
    pictures = turn.work.name == "cnn"

    def loss_of(weights, inputs, targets):
        if pictures:
            inputs = (inputs.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(STD)
        outputs = nnx.merge(graph, weights)(inputs)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()

    def step(weights, held, inputs, targets):
        loss, gradients = jax.value_and_grad(loss_of)(weights, inputs, targets)
        changes, held = optimizer.update(gradients, held, weights)
        return optax.apply_updates(weights, changes), held, loss

    step = jax.jit(step, donate_argnums=(0, 1))
    inputs, targets = (np.array(values) for values in read_data(turn.place, last=True))
    watch, order = Watch(turn), np.random.default_rng(0)
    while True:
        places = order.permutation(len(targets))
        for start in range(0, len(places) - turn.work.batch + 1, turn.work.batch):
            chosen = places[start : start + turn.work.batch]
            weights, held, loss = step(weights, held, inputs[chosen], targets[chosen])
            if watch.tick():
                loss.block_until_ready()
                report(turn, watch.seconds, float(loss), cores=len(os.sched_getaffinity(0)))
                return


if __name__ == "__main__":
    train(read_turn())
