"""What kind of tensor a PyTorch model is given."""

import torch

from modelyard.spec.signature import Signature


def input_type(signature: Signature) -> torch.dtype:
    """Of the tensor that the model takes."""
    return torch.int64 if signature.inputs[0].dtype == "int64" else torch.float32
