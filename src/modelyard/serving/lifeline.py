"""Ends a serving process whose supervisor has died, so that no orphan keeps a port."""

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.5


def watch_parent(pid: int, stop: Callable[[], None]) -> None:
    """Call ``stop`` soon after process ``pid``, our parent, has ended.

    Linux tells by a signal at once. It does so too when only the *thread* that started us ends,
    so the signal is a reason to look, not to stop; looking twice a second is the fallback elsewhere.
    """
    loop = asyncio.get_running_loop()

    def look() -> None:
        if os.getppid() != pid:
            stop()

    def poll() -> None:
        look()
        loop.call_later(_POLL_SECONDS, poll)

    loop.add_signal_handler(signal.SIGUSR2, look)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR2)
    poll()
