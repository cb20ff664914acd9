"""The tensors that a model must take and give, as its data and its task ask."""

from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import (
    ImageInput,
    MixedInput,
    NaturalInput,
    Signature,
    TableInput,
    Tensor,
    TensorInput,
    TextInput,
)
from modelyard.tasks import open_task

INPUT, OUTPUT = "input", "output"


def signature_of(natural: NaturalInput, task: TaskSpec) -> Signature:
    """``input``: float32 (int64 for texts) (batch, *shape of one sample); ``output``: float32 (batch, output size).

    Of a sample of several parts each is an input, and has the part's name: ``image``, ``text``, ``table``.
    Raises UsageError for an unknown task, DataError where the task's loss does not fit its classes.
    """
    output_size = open_task(task).output_size
    if isinstance(natural, MixedInput):
        taken = tuple(_tensor(name, part) for name, part in natural.parts.items())
    else:
        taken = (_tensor(INPUT, natural),)
    return Signature(
        inputs=taken,
        outputs=(Tensor(name=OUTPUT, dtype="float32", shape=(None, output_size)),),
    )


def _tensor(name: str, natural: ImageInput | TextInput | TableInput | TensorInput) -> Tensor:
    text = isinstance(natural, TextInput)
    return Tensor(
        name=name,
        dtype="int64" if text else "float32",
        shape=(None, *natural.shape),
        below=natural.vocabulary if isinstance(natural, TextInput) else None,
    )
