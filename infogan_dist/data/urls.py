"""Locations of files: local paths and URLs."""

from urllib.parse import urlsplit


def is_remote(location: str) -> bool:
    """Return whether a location is a URL rather than a local path."""
    return "://" in location


def redact_url(location: str) -> str:
    """Return a location for messages: a URL without user, password, query and fragment; a path unchanged.

    The query may contain a signature, and a `pipe:` command may contain a password.
    """
    if location.startswith("pipe:"):
        return "pipe:..."
    scheme, separator, rest = location.partition("://")
    if not separator:
        return location
    try:
        parts = urlsplit(f"//{rest}")
        _ = parts.port
    except ValueError:  # The end of the password is unknown then.
        return f"{scheme}://..."
    if "://" in parts.path:  # A URL within the path may have a password of its own.
        return f"{scheme}://..."
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
