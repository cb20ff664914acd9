"""What ends a worker from outside, after a checkpoint: a signal."""

import signal
import threading
from collections.abc import Callable


def listen_for_signals() -> Callable[[], bool]:
    """SIGTERM and SIGINT only raise a flag; the loop stops at the next meeting, after a checkpoint."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    return asked.is_set
