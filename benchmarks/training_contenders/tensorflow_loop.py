"""A loop written by hand in TensorFlow after its guide: ``GradientTape`` in a ``tf.function``, a ``tf.data`` pipeline."""

import os

from benchmarks.keras_models import build
from benchmarks.training_contenders.keras_fit import data_of, keras, tf
from benchmarks.training_work import DECAY, RATE, Turn, Watch, read_turn, report


def train(turn: Turn) -> None:
    model = build(turn.work.name)
    optimizer = keras.optimizers.AdamW(RATE, weight_decay=DECAY)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(jit_compile="jit" in turn.options)
    def step(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = loss_of(targets, model(inputs, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    watch = Watch(turn)
    for inputs, targets in data_of(turn):
        loss = step(inputs, targets)
        if watch.tick():
            report(turn, watch.seconds, float(loss), cores=len(os.sched_getaffinity(0)))
            return


if __name__ == "__main__":
    train(read_turn())
