"""Files that are written completely or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infogan_dist.errors import DataError

PARTIAL_SUFFIX = ".part"  # of the temporary file; one that is left behind belongs to a writer that was killed


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` at the end, or remove it after an error.

    The temporary name contains the process id, so that several processes may write the same file.

    Raises:
        OSError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Write a text file atomically; see `atomic_write`.

    Args:
        path: of the file.
        text: its content.
        private: only the user may read the file; else the umask decides.
    """
    with atomic_write(path) as partial:
        if private:
            partial.touch(mode=0o600)  # before the text is in it
            partial.chmod(0o600)
        partial.write_text(text)


@contextmanager
def report_unwritable(path: Path, remedy: str) -> Iterator[None]:
    """Convert an `OSError` of the block, which writes `path`, to a `DataError` with this remedy."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); {remedy}") from None


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
