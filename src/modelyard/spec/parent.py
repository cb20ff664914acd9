"""Ends a process when whoever started it is gone: the portable twin of Linux's PDEATHSIG."""

import os
import threading
import time

_POLL_SECONDS = 1.0


def end_with_parent() -> None:
    """From now on, also where a child of the parent still holds the other end of a pipe."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
