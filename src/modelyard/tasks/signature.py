"""The tensors that a model must take and give, as its data and its task ask."""

from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import NaturalInput, Signature, Tensor
from modelyard.tasks import open_task

INPUT, OUTPUT = "input", "output"


def signature_of(natural: NaturalInput, task: TaskSpec) -> Signature:
    """``input``: float32 (batch, *shape of one sample); ``output``: float32 (batch, output size).

    Raises UsageError for an unknown task, DataError where the task's loss does not fit its classes.
    """
    output_size = open_task(task).output_size
    return Signature(
        inputs=(Tensor(name=INPUT, dtype="float32", shape=(None, *natural.shape)),),
        outputs=(Tensor(name=OUTPUT, dtype="float32", shape=(None, output_size)),),
    )
