"""Caches with a limit in bytes: one in memory, and one on disk that processes and runs share."""

import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Generic, TypeVar

from infogan_dist.files import atomic_write

K = TypeVar("K")
V = TypeVar("V")
CACHED_FILE = re.compile(r"[0-9a-f]{64}")
# Temporary files of writers that were killed, and lock files of earlier versions.
LEFT_FILE = re.compile(r"\.?[0-9a-f]{64}(\.\d+)?\.part|[0-9a-f]{64}\.lock")
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
        self.folder, self.limit = folder, limit
        self._warned: set[str] = set()
        # Files of the last listing that may be removed, the least recently used last: the folder is listed
        # once for many removals, since that takes a second where it has tens of thousands of files.
        self._candidates: list[tuple[int, int, Path]] = []

    def read(
        self, key: str, size: int | None, is_valid: Callable[[bytes], bool], download: Callable[[], bytes]
    ) -> bytes:
        """Return the cached file of a key; download and store it if there is none or it is not valid.

        Of several processes that read the same key, one downloads it and the others wait.

        Args:
            key: identifies the content, such as its checksum.
            size: of the file in bytes; None: not known.
            is_valid: function that checks the bytes of a cached file.
            download: function that returns the file's bytes.
        """
        if size is not None and size > self.limit:
            self._warn_of_size(size)
            return download()
        path = self.folder / hashlib.sha256(key.encode()).hexdigest()
        content = _read_valid(path, is_valid)
        if content is not None:
            return content
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_lock_key(self.folder / "keys.lock", path.name))
            except OSError as error:
                self._warn(error)
            content = _read_valid(path, is_valid)
            if content is None:
                content = download()
                self._write(path, content)
        return content

    def _write(self, path: Path, content: bytes) -> None:
        if len(content) > self.limit:
            self._warn_of_size(len(content))
            return
        try:
            with _lock_total(self.folder / "all.lock") as stream:
                total = self._make_room(_read_total(stream), len(content))
                # Before the file is written: if this process is killed, the total is too large, and the next
                # listing corrects it.
                _write_total(stream, total + len(content))
                with atomic_write(path) as partial:
                    partial.write_bytes(content)
        except OSError as error:
            self._warn(error)

    def _make_room(self, total: int | None, size: int) -> int:
        """Remove the least recently used files until `size` more bytes fit. The caller has locked the total.

        Args:
            total: bytes of the cached files; None if not known.
            size: of the file that is to be added.

        Returns:
            The bytes of the files that remain.
        """
        is_listed = total is None
        total = self._list() if total is None else total
        while total + size > self.limit:
            if self._candidates:
                used, of_file, path = self._candidates.pop()
                with suppress(FileNotFoundError):
                    # Else it was used, or replaced, after the listing.
                    if path.stat().st_mtime_ns == used:
                        path.unlink()
                        total -= of_file
            elif is_listed:
                break
            else:
                total, is_listed = self._list(), True
        return total

    def _list(self) -> int:
        """List the candidates for removal, remove what killed writers left; return the bytes of all files."""
        self._candidates = []
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):
                if LEFT_FILE.fullmatch(entry.name):
                    os.unlink(entry)
                elif CACHED_FILE.fullmatch(entry.name):
                    status = entry.stat()
                    self._candidates.append((status.st_mtime_ns, status.st_size, Path(entry)))
        self._candidates.sort(reverse=True)
        return sum(size for _, size, _ in self._candidates)

    def _warn(self, error: OSError) -> None:
        message = f"{self.folder}: the cache cannot be written ({error.strerror}); reading without it"
        self._warn_once("unwritable", message)

    def _warn_of_size(self, size: int) -> None:
        limit = f"{self.limit / 2**30:.3g} GiB"
        message = f"{self.folder}: a shard of {size:,} bytes does not fit in a cache of {limit}"
        self._warn_once("size", f"{message}, and is downloaded each time; set data.disk_cache_gib")

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message)


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


def _read_total(stream: IO[str]) -> int | None:
    stream.seek(0)
    text = stream.read(32)
    return int(text) if text.isdecimal() else None


def _write_total(stream: IO[str], total: int) -> None:
    stream.seek(0)
    stream.truncate()
    stream.write(str(total))
    stream.flush()


@contextmanager
def _lock_total(path: Path) -> Iterator[IO[str]]:
    """Lock the folder against other writers; yield the file with the bytes of all cached files.

    The kernel releases the lock of a process that is killed.
    """
    with path.open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield stream
        finally:
            # Closing the file is not enough: a child that was forked meanwhile has it open as well.
            fcntl.flock(stream, fcntl.LOCK_UN)


@contextmanager
def _lock_key(path: Path, digest: str) -> Iterator[None]:
    """Lock a key against other processes: one byte of a file that all keys share, and that stays empty."""
    with path.open("a") as stream:
        fcntl.lockf(stream, fcntl.LOCK_EX, 1, int(digest[:15], 16))
        yield  # Closing the file releases the lock.
