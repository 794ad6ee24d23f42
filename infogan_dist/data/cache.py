"""Caches with a limit in bytes: one in memory, and one on disk that processes and runs share."""

import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar

from infogan_dist.files import atomic_write

K = TypeVar("K")
V = TypeVar("V")
# Names of cached files, and of temporary files of writers that were killed (also those of earlier versions).
CACHED_FILE = re.compile(r"[0-9a-f]{64}")
PARTIAL_FILE = re.compile(r"\.?[0-9a-f]{64}(\.\d+)?\.part")
logger = logging.getLogger(__name__)


class MemoryCache(Generic[K, V]):
    """Values by key, added in order until they fill a limit; nothing is evicted.

    Which values it contains depends on the order of calls alone, so that two processes with the same calls
    have the same keys.

    Args:
        limit: bytes that the values may take together.
    """

    def __init__(self, limit: int):
        self.free = limit
        self._values: dict[K, V] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: K) -> V:
        return self._values[key]

    def add(self, key: K, value: V, size: int) -> bool:
        """Add a value of `size` bytes if it fits; return whether it was added."""
        if size > self.free:
            return False
        self.free -= size
        self._values[key] = value
        return True


class DiskCache:
    """A folder of downloaded files that the processes of a machine share.

    A cache that cannot be written costs one warning and time; files are then read without it.

    Args:
        folder: created where it is missing; other files in it are not touched.
        limit: bytes that the files may take together; the least recently used ones are removed first.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit, self._warned = folder, limit, False

    def read(self, url: str, is_valid: Callable[[bytes], bool], download: Callable[[], bytes]) -> bytes:
        """Return the cached file of a URL; download and store it if there is none or it is not valid.

        Of several processes that read the same URL, one downloads it and the others wait.

        Args:
            url: identifies the file.
            is_valid: function that checks the bytes of a cached file.
            download: function that returns the file's bytes.
        """
        path = self.folder / hashlib.sha256(url.encode()).hexdigest()
        content = _read_valid(path, is_valid)
        if content is not None:
            return content
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_lock(path.with_suffix(".lock")))
            except OSError as error:
                self._warn(error)
            content = _read_valid(path, is_valid)
            if content is None:
                content = download()
                self._write(path, content)
        return content

    def _write(self, path: Path, content: bytes) -> None:
        if len(content) > self.limit:
            return
        try:
            with _lock(self.folder / "all.lock"):
                _free_space(self.folder, self.limit - len(content))
                with atomic_write(path) as partial:
                    partial.write_bytes(content)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s: the cache cannot be written (%s); reading without it", self.folder, error.strerror
            )


def _read_valid(path: Path, is_valid: Callable[[bytes], bool]) -> bytes | None:
    """Return a cached file and mark it as used; remove an invalid one and return None."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    valid = is_valid(content)
    with suppress(OSError):
        os.utime(path) if valid else path.unlink()
    return content if valid else None


def _free_space(folder: Path, limit: int) -> None:
    """Remove partial files, and the least recently used files until the others take at most `limit` bytes.

    The caller has locked the folder against other writers, so a partial file belongs to a killed one.
    """
    files = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            if PARTIAL_FILE.fullmatch(path.name):
                path.unlink()
            elif CACHED_FILE.fullmatch(path.name):
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Lock a file against other processes; the kernel releases the lock of a process that is killed."""
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing the file is not enough: a child that was forked meanwhile has it open as well.
            fcntl.flock(stream, fcntl.LOCK_UN)
