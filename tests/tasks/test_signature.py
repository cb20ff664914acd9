"""The tensors that data and task ask of a model."""

from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import ImageInput, NumericColumn, TableInput, TensorInput, TextInput
from modelyard.tasks.signature import signature_of

COLOURS = TaskSpec(
    type="classification", target="label", loss="cross-entropy", classes=("red", "green", "blue")
)


def test_an_image_classifier_takes_a_batch_of_images_and_gives_a_logit_per_class() -> None:
    natural = ImageInput(height=8, width=6, color="rgb", mean=(0.5,) * 3, std=(0.2,) * 3)
    signature = signature_of(natural, COLOURS)
    assert [(t.name, t.dtype, t.shape) for t in signature.inputs] == [
        ("input", "float32", (None, 3, 8, 6))
    ]
    assert [(t.name, t.dtype, t.shape) for t in signature.outputs] == [
        ("output", "float32", (None, 3))
    ]


def test_two_classes_under_binary_cross_entropy_need_one_output() -> None:
    task = TaskSpec(
        type="classification", target="y", loss="binary-cross-entropy", classes=("no", "yes")
    )
    assert signature_of(TensorInput(shape=(4,)), task).outputs[0].shape == (None, 1)
    taken = signature_of(TextInput(length=7, tokens="bytes"), task).inputs[0]
    assert (taken.dtype, taken.shape, taken.below) == ("int64", (None, 7), 257)


def test_a_column_with_gaps_takes_two_features() -> None:
    columns = tuple(
        NumericColumn(name=name, fill=0.0, mean=0.0, std=1.0, indicator=name == "b")
        for name in "ab"
    )
    task = TaskSpec(type="regression", target="y", loss="mean-squared-error")
    assert signature_of(TableInput(columns=columns), task).inputs[0].shape == (None, 3)
