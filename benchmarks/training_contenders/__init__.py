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
    never: tuple[str, ...] = ()
    """Works that it cannot do."""
    kept_memory: bool = False
    """It runs with the allocator's settings that our engine gives its workers."""

    def installed(self, python: str) -> bool:
        """Whether the interpreter that runs the turns has it."""
        asked = f"import importlib.util as u, sys; sys.exit(u.find_spec({self.needs!r}) is None)"
        done = subprocess.run([python, "-c", asked], capture_output=True, check=False)
        return done.returncode == 0

    def arguments(self, workers: int) -> list[str]:
        """What follows the interpreter."""
        module = f"benchmarks.training_contenders.{self.module}"
        start = [*self.launcher, str(workers)] if self.launcher and workers > 1 else []
        return [*start, "-m", module, "--options", self.options, "--workers", str(workers)]


TABLE = {
    "by hand": Entry("by_hand", "torch", launcher=TORCHRUN, group="by hand"),
    "by hand compiled": Entry("by_hand", "torch", "compiled", TORCHRUN, group="by hand"),
    "by hand tuned": Entry("by_hand", "torch", "tuned", TORCHRUN, group="by hand"),
    "by hand tuned compiled": Entry(
        "by_hand", "torch", "tuned,compiled", TORCHRUN, group="by hand"
    ),
    "bare step": Entry("bare_step", "torch", "", TORCHRUN, group=""),
    "bare step of our kind": Entry(
        "bare_step", "torch", "channels-last,fused,bytes", TORCHRUN, group="", kept_memory=True
    ),
    "Lightning": Entry("lightning_fit", "lightning"),
    "Accelerate": Entry("accelerate_loop", "accelerate", launcher=TORCHRUN),
    "Ray Train": Entry("ray_train", "ray"),
    "Keras (TensorFlow)": Entry("keras_fit", "keras", "tensorflow", most=1),
    "Keras (JAX)": Entry("keras_fit", "keras", "jax", most=1),
    "Keras (PyTorch)": Entry("keras_fit", "keras", "torch", most=1),
    "tf.function": Entry("tensorflow_loop", "tensorflow", most=1),
    "modelyard": Entry("modelyard_train", "modelyard", group=""),
}
