"""Existing WebDataset tars as a shard set: a manifest of tars that are read but not copied."""

import glob
import logging
from collections import Counter
from pathlib import Path

import braceexpand
import numpy as np

from infogan_dist.console import progress
from infogan_dist.creation.shard_folder import locked
from infogan_dist.creation.sortedness import sorted_warning
from infogan_dist.creation.tar_index import TarIndex, TarOptions
from infogan_dist.credentials import redact_url
from infogan_dist.data.shards import Manifest, Shard, write_manifest
from infogan_dist.data.urls import is_remote, local_path
from infogan_dist.errors import DataError

logger = logging.getLogger(__name__)


def index_tars(urls: list[str], out: Path, name: str, options: TarOptions | None = None) -> Manifest:
    """Write the manifest of existing WebDataset tars, which are read but not copied.

    Args:
        urls: paths and URLs; `{0000..0099}` and, in paths, `*` are expanded.
        out: folder of the manifest; created where it is missing.
        name: the data's name.
        options: how images are read; None: the defaults.

    Raises:
        NetworkError: a tar cannot be read over the network at the moment.
        DataError: tars are missing or damaged, or contain samples that cannot be decoded.
    """
    options = options or TarOptions()
    index = scan_tars(urls, name, options)
    if warning := sorted_warning([np.asarray(tar.labels, np.int64) for tar in index.tars]):
        logger.warning("%s: %s", name, warning)
    left_out = sorted({*expand(urls)} - {tar.location for tar in index.tars})
    assert index.shape
    manifest = Manifest(
        name,
        index.shape,
        index.label_names,
        [Shard(_relative(t.location, out), t.samples, t.bytes, t.sha256) for t in index.tars],
        fit=options.shape is not None,
        background=options.background,
        image=options.image,
        label=options.label,
        origin={"left_out": left_out} if left_out else {},
        location=str(out),
    )
    with locked(out):
        write_manifest(manifest, out)
    return manifest


def scan_tars(
    urls: list[str], name: str, options: TarOptions, broken_remedy: str = "train with data.on_error=skip"
) -> TarIndex:
    """Read tars and decode their images; report at the end what is wrong.

    Args:
        urls, name, options: as of `index_tars`.
        broken_remedy: end of the warning of samples that cannot be decoded.

    Raises:
        NetworkError, DataError: as `index_tars`.
    """
    locations = expand(urls)
    index = TarIndex(name, options)
    with progress(len(locations), "tar", description=f"index of {name}") as bar:
        for location in locations:
            index.add(location)
            bar.update()
    index.sort_classes()
    index.report(len(locations), broken_remedy)
    return index


def _relative(location: str, out: Path) -> str:
    """Return a tar's location for the manifest: relative to it where the tar is in the same folder."""
    if not is_remote(location) and Path(location).is_relative_to(out.resolve()):
        return Path(location).relative_to(out.resolve()).as_posix()
    return location


def _absolute(url: str) -> str:
    """Return a tar's absolute path, or its URL. Raises `DataError` for a URL with credentials."""
    if not is_remote(url):
        return str(Path(url).resolve())
    if redact_url(url) != url:
        raise DataError(
            f"{redact_url(url)}: its password or query would be readable in the manifest; give a URL without "
            "(hf://, s3:// and gs:// URLs take credentials from the environment)"
        )
    return url


def expand(patterns: list[str]) -> list[str]:
    """Return the absolute locations of tars. Raises `DataError`."""
    locations: list[str] = []
    for pattern in patterns:
        try:
            urls = list(braceexpand.braceexpand(pattern))
        except ValueError:
            raise DataError(f"{redact_url(pattern)}: unbalanced braces; write {{0000..0099}}") from None
        for url in map(local_path, urls):
            matches = [url] if is_remote(url) or "*" not in url else sorted(glob.glob(url))
            if not matches:
                raise DataError(f"{url}: no such tars; check the pattern")
            locations += [_absolute(match) for match in matches]
    if repeated := [location for location, count in Counter(locations).items() if count > 1]:
        more = f", and {len(repeated) - 1} more tars" if len(repeated) > 1 else ""
        raise DataError(f"{repeated[0]}{more}: given more than once; give each tar once")
    return locations
