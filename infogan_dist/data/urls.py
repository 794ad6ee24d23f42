"""Locations of files: local paths and URLs."""

from infogan_dist.credentials import redact_url

__all__ = ["is_remote", "redact_url"]


def is_remote(location: str) -> bool:
    """Return whether a location is a URL rather than a local path."""
    return "://" in location
