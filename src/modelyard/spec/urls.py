"""URLs of data: told apart from paths, and refused where they carry a secret."""

import re
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_SECRET_PARAMETER = re.compile(r"sig|token|secret|passw|credential|key|auth|sas", re.IGNORECASE)
CREDENTIALS = (
    "credentials come from the environment, for S3 from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
    "or AWS_PROFILE"
)


def is_url(path: str) -> bool:
    """``s3://bucket/folder`` is one, ``data/`` and ``C:\\data`` are none."""
    return _URL.match(path) is not None


def local_path(path: str) -> str:
    """``file:///data/a`` as ``/data/a``; anything else as it is."""
    return unquote(urlsplit(path).path) if path.startswith("file://") else path


def secret_in(url: str) -> str:
    """What in the URL looks like a secret, without its value; empty where nothing does."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    if "@" in parts.netloc:
        return "a user name or a password"
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if _SECRET_PARAMETER.search(name):
            return f"the parameter {name!r}"
    return ""


def printable(url: str) -> str:
    """The URL without what may be secret in it: user, password and parameters."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("://")[0] + "://…"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
