"""How much room a file system has, in words for people."""

import contextlib
import os
from pathlib import Path


def room_at(place: str | Path) -> str:
    """``1.2 MB of 64.0 MB are free on the file system at /mnt``; empty where nobody can say.

    ``place`` need not exist. What this user may fill counts, which is less than what root may.
    """
    path = _existing(place)
    with contextlib.suppress(OSError):
        found = os.statvfs(path)
        free, whole = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        while not path.is_mount() and path != path.parent:
            path = path.parent
        words = (
            f"{size_in_words(free)} of {size_in_words(whole)} are free on the file system at {path}"
        )
        no_names = found.f_files > 0 and found.f_favail == 0
        return f"{words}, but no more files (inodes)" if no_names else words
    return ""


def has_less(place: str | Path, count: int) -> bool:
    """Whether fewer than ``count`` bytes are free where ``place`` lies; False where nobody can say."""
    with contextlib.suppress(OSError):
        found = os.statvfs(_existing(place))
        return found.f_bavail * found.f_frsize < count
    return False


def size_in_words(count: int) -> str:
    """Bytes, as ``1.2 MB``."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _existing(place: str | Path) -> Path:
    """``place``, or the nearest folder above it that is there."""
    path = Path(os.path.abspath(place))  # noqa: PTH100  resolve() would ask the disk about links
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
