"""What ends a worker from outside: a signal, after a checkpoint, and the end of its parent, at once."""

import os
import signal
import threading
import time
from collections.abc import Callable

_PARENT_POLL_SECONDS = 1.0


def listen_for_signals() -> Callable[[], bool]:
    """SIGTERM and SIGINT only raise a flag; the loop stops at the next meeting, after a checkpoint."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    return asked.is_set


def end_with_parent() -> None:
    """End when whoever started this worker is gone: the portable twin of Linux's PDEATHSIG."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
