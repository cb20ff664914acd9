"""The tensors that a model must take and give, as its data and its task ask."""

from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import NaturalInput, Signature, Tensor, TextInput
from modelyard.tasks import open_task

INPUT, OUTPUT = "input", "output"


def signature_of(natural: NaturalInput, task: TaskSpec) -> Signature:
    """``input``: float32 (int64 for texts) (batch, *shape of one sample); ``output``: float32 (batch, output size).

    Raises UsageError for an unknown task, DataError where the task's loss does not fit its classes.
    """
    output_size = open_task(task).output_size
    taken = Tensor(
        name=INPUT,
        dtype="int64" if isinstance(natural, TextInput) else "float32",
        shape=(None, *natural.shape),
        below=natural.vocabulary if isinstance(natural, TextInput) else None,
    )
    return Signature(
        inputs=(taken,),
        outputs=(Tensor(name=OUTPUT, dtype="float32", shape=(None, output_size)),),
    )
