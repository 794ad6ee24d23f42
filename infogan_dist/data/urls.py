"""Locations of files: local paths and URLs."""

import os
from urllib.parse import unquote, urlsplit

from infogan_dist.credentials import redact_url
from infogan_dist.errors import DataError

# Schemes that always name another machine; others of fsspec may name files of this one.
NETWORK_SCHEMES = ("http", "https", "s3", "hf", "gs", "gcs", "az", "abfs", "abfss", "ftp", "ftps", "sftp")


def is_remote(location: str) -> bool:
    """Return whether a location is a URL rather than a local path."""
    return "://" in location


def local_path(location: str) -> str:
    """Return a location with `~` and `file://` resolved to a path; other URLs are returned unchanged.

    Raises:
        DataError: a file:// URL names another machine.
    """
    if location.startswith("file://"):
        parts = urlsplit(location)
        if parts.netloc not in ("", "localhost"):
            where = redact_url(location)
            raise DataError(f"{where}: not a file of this machine; write file:///PATH or a path")
        return unquote(parts.path)
    return location if is_remote(location) else os.path.expanduser(location)


def parent_location(location: str, name: str) -> str:
    """Return the folder, a path or URL, that a location names by itself or by the file `name` in it."""
    path, query = _split_query(location)
    folder = path.removesuffix(name)
    return (folder.rstrip("/") or ("/" if folder.startswith("/") else ".")) + query


def join_location(folder: str, name: str) -> str:
    """Return the path or URL of a file.

    Args:
        folder: path or URL. The query of an http(s) URL may contain a token, and is that of the file as well.
        name: relative to the folder; may have a query of its own instead.
    """
    path, query = _split_query(folder)
    is_http = folder.startswith(("http://", "https://"))
    return f"{path.rstrip('/')}/{name}{'' if is_http and '?' in name else query}"


def _split_query(location: str) -> tuple[str, str]:
    """Return an http(s) URL without its query and fragment, and the query with its question mark."""
    if not location.startswith(("http://", "https://")):
        return location, ""
    path, mark, query = location.partition("#")[0].partition("?")
    return path, mark + query


def refusal_of_shard(url: str, folder: str) -> str | None:
    """Return why a remote manifest may not name a shard by this URL; None if it may.

    Args:
        url: absolute, or relative to the folder.
        folder: URL of the manifest's folder.
    """
    scheme, separator, _ = url.partition("://")
    if separator and scheme not in (*NETWORK_SCHEMES, folder.partition("://")[0]):
        return f"{scheme}:// URLs may name files of this machine"
    if not separator and url.startswith(("/", "~", "pipe:")):
        return "it is not a URL or relative to the manifest"
    return None
