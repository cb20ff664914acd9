"""What others call a word of the project file, where it is not like ours: ``fsdp`` is ``shard``."""

from collections.abc import Collection

_OURS = {
    "fsdp": "shard",
    "fsdp2": "shard",
    "zero": "shard",
    "sharded": "shard",
    "ddp": "replicate",
    "fp32": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "gpu": "cuda",
    "mkldnn": "onednn",
    "mkl": "blas",
    "bce": "binary-cross-entropy",
    "mse": "mean-squared-error",
    "l2": "mean-squared-error",
    "mae": "mean-absolute-error",
    "l1": "mean-absolute-error",
    "smooth-l1": "huber",
}


def other_name(word: str, choices: Collection[str]) -> str:
    """The one of ``choices`` that ``word`` means elsewhere, or an empty string."""
    meant = _OURS.get(word.lower().replace("_", "-"), "")
    return meant if meant in choices else ""
