"""What goes into a model and what comes out: tensors, and the natural input they are made from."""

from typing import Literal

import msgspec


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """One named tensor; ``None`` in the shape is an axis that may vary (the batch)."""

    name: str
    dtype: str
    """NumPy's name: ``float32``, ``int64``, …"""
    shape: tuple[int | None, ...]
    below: int | None = None
    """Of numbers that stand for something: they are 0 or more and less than this."""


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """The tensors of a model. Axis 0 of each is the batch."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class ImageInput(msgspec.Struct, frozen=True, kw_only=True, tag="image"):
    """An image file: decoded, converted, resized (bilinear), scaled to 0–1, then normalised.

    Stored form: uint8 ``(channels, height, width)``; model form: float32 of the same shape,
    ``(x / 255 - mean[c]) / std[c]``.
    """

    height: int
    width: int
    color: Literal["rgb", "grey"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return 3 if self.color == "rgb" else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample in model form."""
        return (self.channels, self.height, self.width)

    @property
    def scale(self) -> tuple[float, ...]:
        """For each channel: model form is ``stored * scale + shift``, in float32."""
        return tuple(1.0 / (255.0 * std) for std in self.std)

    @property
    def shift(self) -> tuple[float, ...]:
        """See ``scale``."""
        return tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))


class NumericColumn(msgspec.Struct, frozen=True, kw_only=True, tag="numeric"):
    """A number: missing becomes ``fill`` (the training median), then ``(x - mean) / std``."""

    name: str
    fill: float
    mean: float
    std: float
    indicator: bool = False
    """Adds a second feature, 1.0 where the value was missing; set where training data had gaps."""

    @property
    def width(self) -> int:
        return 2 if self.indicator else 1


class CategoricalColumn(msgspec.Struct, frozen=True, kw_only=True, tag="categorical"):
    """One of a few words: one-hot over ``categories``; a missing or unseen word is all zeros."""

    name: str
    categories: tuple[str, ...]

    @property
    def width(self) -> int:
        return len(self.categories)


class BooleanColumn(msgspec.Struct, frozen=True, kw_only=True, tag="boolean"):
    """True, false or missing: 1.0, 0.0, or ``fill`` (the training mean)."""

    name: str
    fill: float

    @property
    def width(self) -> int:
        return 1


Column = NumericColumn | CategoricalColumn | BooleanColumn


class TableInput(msgspec.Struct, frozen=True, kw_only=True, tag="table"):
    """A row of a table, ``{column: value}``; stored form and model form are float32 ``(features,)``."""

    columns: tuple[Column, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample in model form."""
        return (sum(column.width for column in self.columns),)


class TensorInput(msgspec.Struct, frozen=True, kw_only=True, tag="tensor"):
    """A nested list of numbers; stored as it came (float32), in model form ``(x - mean) / std``."""

    shape: tuple[int, ...]
    mean: float = 0.0
    std: float = 1.0


class TextInput(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    """A text: its first ``length`` tokens as numbers, filled up with 0.

    Bytes of UTF-8 are 1 to 256. Words are runs of letters and digits in lower case, every other sign
    is one by itself; 1 is a word that is not in ``words``, 2 the first of these.
    Stored form: int32 ``(length,)``; model form: int64 of the same shape.
    """

    length: int
    tokens: Literal["words", "bytes"]
    words: tuple[str, ...] = ()
    """The most frequent ones of the training split, most frequent first."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def vocabulary(self) -> int:
        """All numbers are less than this."""
        return 257 if self.tokens == "bytes" else len(self.words) + 2


class MixedInput(msgspec.Struct, frozen=True, kw_only=True, tag="mixed"):
    """A row of a table whose columns are of several kinds: a picture, a text, and those of a table.

    At least two parts. Each is a tensor of its own for the model, named as here; how they lie side by
    side in stored form is told in ``modelyard.tasks.parts``.
    """

    image: ImageInput | None = None
    text: TextInput | None = None
    table: TableInput | None = None
    image_column: str = ""
    """What a caller names the picture: in JSON the file's bytes as base64."""
    text_column: str = ""

    @property
    def parts(self) -> "dict[str, ImageInput | TextInput | TableInput]":
        """Those that are there, in the order of the model's inputs."""
        named = {"image": self.image, "text": self.text, "table": self.table}
        return {name: part for name, part in named.items() if part is not None}


NaturalInput = ImageInput | TableInput | TensorInput | TextInput | MixedInput
"""How plain input becomes the model's tensor; fitted on the training split only, kept in the bundle."""
