"""Who is compared: each contender is one file, a loop as the documentation of its framework teaches it."""

import subprocess
from dataclasses import dataclass

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


@dataclass(frozen=True)
class Entry:
    """How one contender is started, and on what it rests."""

    module: str
    needs: str
    """The package without which it cannot run."""
    options: str = ""
    launcher: tuple[str, ...] = ()
    """Starts several workers; the number follows. Empty: the contender starts them itself."""
    most: int = 2
    """Workers that it can have."""
    group: str = "framework"
    """``by hand``, ``framework``, or empty for what is no rival."""
    kept_memory: bool = False
    """It runs with the allocator's settings that our engine gives its workers."""
    share: float = 1.0
    """Of the steps of a turn: a slow one need not run longer than the others."""

    def missing(self, python: str, environment: dict[str, str], workers: int) -> str:
        """Why it cannot run this, told by the interpreter that would run it; empty where it can."""
        if workers > self.most:
            return f"cannot have {workers} workers here"
        asked = f"import importlib.util as u, sys; sys.exit(u.find_spec({self.needs!r}) is None)"
        command = [python, "-c", asked]
        done = subprocess.run(command, capture_output=True, check=False, env=environment)
        return f"{self.needs} is not installed" if done.returncode else ""

    def arguments(self, workers: int, *, parts: bool = False) -> list[str]:
        """What follows the interpreter; with ``parts`` it says where the time of a step goes."""
        options = ",".join(filter(None, (self.options, "parts" if parts else "")))
        module = f"benchmarks.training_contenders.{self.module}"
        start = [*self.launcher, str(workers)] if self.launcher and workers > 1 else []
        return [*start, "-m", module, "--options", options, "--workers", str(workers)]


_TUNED, _KIND = "tuned", "channels-last,fused,bytes,mixed,attention"
TABLE = {
    "by hand": Entry("by_hand", "torch", launcher=TORCHRUN, group="by hand", share=0.4),
    "by hand compiled": Entry("by_hand", "torch", "compiled", TORCHRUN, group="by hand", share=0.4),
    "by hand tuned": Entry("by_hand", "torch", _TUNED, TORCHRUN, group="by hand"),
    "by hand tuned compiled": Entry(
        "by_hand", "torch", "tuned,compiled", TORCHRUN, group="by hand"
    ),
    "bare step of our kind": Entry(
        "bare_step", "torch", _KIND, TORCHRUN, group="", kept_memory=True
    ),
    "bare step our optimizer": Entry(
        "bare_step", "torch", f"{_KIND},direct", TORCHRUN, group="", kept_memory=True
    ),
    "Lightning": Entry("lightning_fit", "lightning", share=0.4),
    "Lightning tuned": Entry("lightning_fit", "lightning", _TUNED, share=0.6),
    "Accelerate": Entry("accelerate_loop", "accelerate", "", TORCHRUN, share=0.4),
    "Accelerate tuned": Entry("accelerate_loop", "accelerate", _TUNED, TORCHRUN, share=0.6),
    "Ray Train": Entry("ray_train", "ray", share=0.4),
    "Keras (TensorFlow)": Entry("keras_fit", "keras", "tensorflow", most=1),
    "Keras (TensorFlow) 32 at once": Entry("keras_fit", "keras", "tensorflow,many", most=1),
    "Keras (TensorFlow) XLA": Entry("keras_fit", "keras", "tensorflow,jit", most=1, share=0.5),
    "Keras (JAX)": Entry("keras_fit", "keras", "jax", most=1, share=0.4),
    "Keras (PyTorch)": Entry("keras_fit", "keras", "torch", most=1, share=0.25),
    "tf.function": Entry("tensorflow_loop", "tensorflow", "tensorflow", most=1),
    "tf.function XLA": Entry("tensorflow_loop", "tensorflow", "tensorflow,jit", most=1),
    "jax.jit": Entry("jax_loop", "jax", most=1),
    "modelyard": Entry("modelyard_train", "modelyard", group=""),
    "modelyard keras (TensorFlow)": Entry("modelyard_train", "keras", "keras,tensorflow", group=""),
    "modelyard keras (TensorFlow) XLA": Entry(
        "modelyard_train", "keras", "keras,tensorflow,jit", group=""
    ),
    "modelyard keras (JAX)": Entry("modelyard_train", "keras", "keras,jax", group=""),
    "modelyard keras (PyTorch)": Entry("modelyard_train", "keras", "keras,torch", group=""),
    "modelyard jax": Entry("modelyard_train", "jax", "jax", group=""),
}
"""``tuned`` peers have the data, memory format and optimizer of the loop by hand of that name: what is left is their loop."""

OTHER_FRAMEWORKS = frozenset(
    {"jax.jit", "tf.function XLA", *(name for name in TABLE if name.startswith("modelyard "))}
)
"""Compared in ``benchmarks.frameworks``, each with those of its own framework."""
