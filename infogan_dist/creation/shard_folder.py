"""The folder of a shard set: it has one writer at a time, and its set appears as a whole.

OUT/
    manifest.json       moved here last
    000000.tar ...
    .partial/           the set that is being written
    .lock               locked while it is
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infogan_dist.data.shards import MANIFEST, Manifest, load_manifest, write_manifest
from infogan_dist.errors import DataError
from infogan_dist.files import report_unwritable

LOCK, PARTIAL = ".lock", ".partial"
OTHER_FOLDER = "choose another folder with --out"


def fill_folder(out: Path, write: Callable[[Path], Manifest]) -> Manifest:
    """Create a shard set in a folder: either all of its files appear there, or none.

    What a writer that was killed left behind is removed; no other file is removed or replaced.

    Args:
        out: folder of the shard set; created where it is missing.
        write: function that writes the tars into a temporary folder, and returns their manifest.

    Raises:
        DataError: the folder has a shard set or other tars, another process writes into it, or it cannot be
            written.
    """
    with locked(out):
        _remove_interrupted(out)
        tars = sorted(path.name for path in out.glob("*.tar"))
        if tars:
            raise DataError(
                f"{out}: contains {tars[0]} ({len(tars)} tars), which no manifest lists; remove what is not "
                f"needed, or {OTHER_FOLDER}"
            )
        partial = out / PARTIAL
        try:
            with report_unwritable(out, f"free space, or {OTHER_FOLDER}"):
                partial.mkdir()
                manifest = write(partial)
                write_manifest(manifest, partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for name in (*(shard.url for shard in manifest.shards), MANIFEST):
            os.replace(partial / name, out / name)
        partial.rmdir()
        return manifest


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock a folder without a shard set; the kernel releases the lock however the process ends.

    The folder is created where it is missing, and then removed at the end if it is empty.

    Raises:
        DataError: another process has locked it, or it has a shard set, or it cannot be written.
    """
    is_new = not out.exists()
    with report_unwritable(out, OTHER_FOLDER):
        out.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(out)
    try:
        if (out / MANIFEST).exists():
            raise DataError(f"{out}: already a shard set; remove it, or {OTHER_FOLDER}")
        yield
    finally:
        (out / LOCK).unlink(missing_ok=True)
        os.close(descriptor)
        if is_new:
            with suppress(OSError):  # The folder has a shard set, or other files.
                out.rmdir()


def _lock(out: Path) -> int:
    """Return the descriptor of the locked file."""
    while True:
        descriptor = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise DataError(
                f"{out}: another process creates a shard set there; wait for it, or {OTHER_FOLDER}"
            ) from None
        if _is_open_at(descriptor, out / LOCK):
            return descriptor
        os.close(descriptor)


def _is_open_at(descriptor: int, path: Path) -> bool:
    """Whether a path still names an open file, which another process may have removed meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove_interrupted(out: Path) -> None:
    """Remove the files of a writer that was killed: its temporary folder, and the tars that it had moved."""
    partial = out / PARTIAL
    if (partial / MANIFEST).exists():
        for shard in load_manifest(os.fspath(partial)).shards:
            if not (partial / shard.url).exists():
                (out / shard.url).unlink(missing_ok=True)
    if partial.exists():
        shutil.rmtree(partial)
