"""PyTorch: families for texts and other sequences: rnn, transformer-encoder, transformer-decoder."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_CELLS: dict[str, Any] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def there(tokens: torch.Tensor) -> torch.Tensor:
    """Which positions count: int64 (n, length) -> bool (n, length).

    0 is where a text has ended; of an empty text the first position counts, so that there is one.
    """
    return (tokens != 0) | (torch.arange(tokens.shape[1], device=tokens.device) == 0)


def last_there(x: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    """What stands at the last position that counts: (n, length, width) -> (n, width)."""
    if counted is None:
        return x[:, -1]
    place = counted.sum(dim=1, keepdim=True) - 1
    chosen = torch.arange(x.shape[1], device=x.device) == place
    return (x * chosen.unsqueeze(-1)).sum(dim=1)


class Recurrent(nn.Module):
    """See ``rnn``."""

    def __init__(
        self,
        features: int,
        vocabulary: int,
        outputs: int,
        kind: str,
        width: int,
        layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.vectors = nn.Embedding(vocabulary, width) if vocabulary else None
        if self.vectors is not None:
            nn.init.normal_(self.vectors.weight, std=_SMALL)
        before = width if vocabulary else features
        self.cells = _CELLS[kind](
            before, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0
        )
        _begin_cells(self.cells, kind, width)
        self.drop, self.last = nn.Dropout(dropout), nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        counted = None
        if self.vectors is not None:
            counted, x = there(x), self.vectors(x)
        # What comes after the end of a text cannot change what was said before it.
        found: torch.Tensor = self.last(self.drop(last_there(self.cells(x)[0], counted)))
        return found


def _begin_cells(cells: nn.Module, kind: str, width: int) -> None:
    """Kernels as the docstring of ``rnn`` says; the second of two biases that only add up stays 0."""
    for name, parameter in cells.named_parameters():
        gates = parameter.data.view(-1, width, *parameter.shape[1:])
        if name.startswith("weight_ih"):
            nn.init.xavier_uniform_(parameter.data)
        elif name.startswith("weight_hh"):
            nn.init.orthogonal_(parameter.data)
        else:
            nn.init.zeros_(parameter.data)
            if kind == "lstm" and name.startswith("bias_ih"):
                nn.init.ones_(gates[1])
            if kind != "gru" and name.startswith("bias_hh"):
                parameter.requires_grad_(False)


def rnn(
    input_shape: tuple[int, ...],
    outputs: int,
    vocabulary: int = 0,
    kind: str = "lstm",
    width: int = 64,
    layers: int = 1,
    dropout: float = 0.0,
) -> nn.Module:
    """A recurrent network, judged by its last position that counts.

    int64 (n, length) of tokens, or float32 (n, time, features) -> float32 (n, outputs). Cells: "rnn" with
    tanh (Elman 1990), "lstm" (Hochreiter, Schmidhuber 1997; with a forget gate), "gru" (Cho et al. 2014; the reset gate
    acts after the product). Tokens' vectors begin normal with deviation 0.02, kernels by Glorot's rule (uniform),
    recurrent kernels orthogonal, biases 0, an LSTM's forget gate 1 (Jozefowicz et al. 2015). A GRU has two biases,
    the other cells one: that of PyTorch which only adds to the first is not trained.
    """
    features = 0 if vocabulary else input_shape[1]
    return Recurrent(features, vocabulary, outputs, kind, width, layers, dropout)


_SMALL = 0.02


class Attention(nn.Module):
    """Several heads of self-attention: (n, length, width) -> the same shape.

    ``inner`` gives queries, keys and values one after the other, each head by head.
    """

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self._heads, self._causal = heads, causal

    def forward(self, x: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
        split = self.inner(x).unflatten(-1, (3, self._heads, -1))
        query, key, value = (part.squeeze(2).transpose(1, 2) for part in split.split(1, dim=2))
        if self._causal:  # positions after the end are seen by such positions only
            found = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            seen = None if counted is None else counted[:, None, None, :]
            found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        gathered: torch.Tensor = self.outer(found.transpose(1, 2).flatten(2))
        return gathered


class Block(nn.Module):
    """Attention and two dense layers, each normed before and added to what came in."""

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float, *, causal: bool
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = (
            nn.LayerNorm(width),
            Attention(width, heads, causal=causal),
        )
        self.dense_norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
        x = x + self.drop(self.attention(self.attention_norm(x), counted))
        inner = nn.functional.gelu(self.wide(self.dense_norm(x)))
        found: torch.Tensor = x + self.drop(self.narrow(inner))
        return found


class Transformer(nn.Module):
    """See ``transformer_encoder``."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        vocabulary: int,
        outputs: int,
        width: int,
        heads: int,
        layers: int,
        hidden: int,
        dropout: float,
        *,
        causal: bool,
    ) -> None:
        super().__init__()
        self._tokens, self._causal = bool(vocabulary), causal
        self.vectors: nn.Module
        if vocabulary:
            self.vectors = nn.Embedding(vocabulary, width)
            nn.init.normal_(self.vectors.weight, std=_SMALL)
        else:
            self.vectors = nn.Linear(input_shape[1], width)
        self.positions = nn.Parameter(torch.randn(input_shape[0], width) * _SMALL)
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, dropout, causal=causal) for _ in range(layers)
        )
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, outputs)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        counted = there(x) if self._tokens else None
        x = self.drop(self.vectors(x) + self.positions)
        for block in self.blocks:
            x = block(x, counted)
        x = self.norm(x)
        if self._causal:
            x = last_there(x, counted)
        elif counted is None:
            x = x.mean(dim=1)
        else:
            weights = counted.unsqueeze(-1).to(x.dtype)
            x = (x * weights).sum(dim=1) / weights.sum(dim=1)
        found: torch.Tensor = self.last(x)
        return found


def transformer_encoder(
    input_shape: tuple[int, ...],
    outputs: int,
    vocabulary: int = 0,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    hidden: int = 128,
    dropout: float = 0.1,
) -> nn.Module:
    """A Transformer whose positions all see each other (Vaswani et al. 2017), then the mean over them.

    int64 (n, length) of tokens, or float32 (n, time, features) -> float32 (n, outputs). Where a text has
    ended (token 0), nothing is seen nor counted. Norms come before attention and dense layers, and once more
    at the end, with epsilon 1e-5; the dense layers have GELU by the error function; positions are learned. Tokens' vectors
    and positions begin normal with deviation 0.02.
    """
    return Transformer(
        input_shape, vocabulary, outputs, width, heads, layers, hidden, dropout, causal=False
    )


def transformer_decoder(
    input_shape: tuple[int, ...],
    outputs: int,
    vocabulary: int = 0,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    hidden: int = 128,
    dropout: float = 0.1,
) -> nn.Module:
    """As ``transformer_encoder``, but a position sees none after it, and the last that counts is judged.

    int64 (n, length) of tokens, or float32 (n, time, features) -> float32 (n, outputs).
    """
    return Transformer(
        input_shape, vocabulary, outputs, width, heads, layers, hidden, dropout, causal=True
    )


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "rnn": rnn,
    "transformer-encoder": transformer_encoder,
    "transformer-decoder": transformer_decoder,
}
