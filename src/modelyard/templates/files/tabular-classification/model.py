"""The model: a multi-layer perceptron in plain PyTorch. Change it as you like.

`yard` calls `build` with the shape of one sample and the number of values to return per sample.
Keyword arguments come from [model] args in yard.toml.
"""

from torch import nn


def build(
    input_shape: tuple[int, ...], outputs: int, hidden: int = 32, dropout: float = 0.3
) -> nn.Module:
    """A network from (batch, features) to (batch, outputs).

    The features are the table's columns, already filled in and scaled: numbers have mean 0 and standard
    deviation 1, words are one column of 0 and 1 each.
    """
    (features,) = input_shape
    return nn.Sequential(
        nn.Linear(features, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, outputs),  # no softmax: the loss and the service add it
    )
