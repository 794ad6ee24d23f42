"""Files kept on disk between processes and runs: never taken for whole when they are not."""

import fcntl
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar


K, V = TypeVar("K"), TypeVar("V")


class MemoryCache(Generic[K, V]):
    """Values by key, added in order until they fill a limit; nothing is evicted.

    Which values it contains depends only on the order of calls, so that two processes which make the same calls
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


class Cache:
    """A folder of files that the processes of a machine share; trouble with it never stops reading.

    Args:
        folder: made where it is missing; other files in it are left alone.
        limit: bytes that the files may sum up to; those used longest ago go first.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit, self._warned = folder, limit, False

    def read(self, url: str, sound: Callable[[bytes], bool], bring: Callable[[], bytes]) -> bytes:
        """The file of `url`: the kept one if it is `sound`, else what `bring` returns.

        Of several processes that want the same file, one brings it and the others wait for it.
        """
        path = self.folder / hashlib.sha256(url.encode()).hexdigest()
        content = _hit(path, sound)
        if content is not None:
            return content
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_locked(path.with_suffix(".lock")))
            except OSError as error:
                self._warn(error)
            content = _hit(path, sound)
            if content is None:
                content = bring()
                self._keep(path, content)
        return content

    def _keep(self, path: Path, content: bytes) -> None:
        """Writes a file, whole or not at all."""
        if len(content) > self.limit:
            return
        part = path.with_suffix(".part")
        try:
            with _locked(self.folder / "all.lock"):
                _make_room(self.folder, self.limit - len(content))
                part.write_bytes(content)
                os.replace(part, path)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            said = f"{self.folder}: the cache cannot be written ({error.strerror}); reading without it"
            print(f"warning: {said}", file=sys.stderr, flush=True)


def _hit(path: Path, sound: Callable[[bytes], bool]) -> bytes | None:
    """A kept file, marked as used; one that is not sound is removed."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    good = sound(content)
    with suppress(OSError):
        os.utime(path) if good else path.unlink()
    return content if good else None


def _make_room(folder: Path, limit: int) -> None:
    """Removes the files used longest ago until at most `limit` bytes are left, and all unfinished ones.

    Files are written only under the lock that the caller holds: an unfinished one is a killed writer's.
    """
    files = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            if re.fullmatch(r"[0-9a-f]{64}\.part", path.name):
                path.unlink()
            elif re.fullmatch(r"[0-9a-f]{64}", path.name):
                files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock between processes, which the kernel releases when its holder is killed."""
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing would not do: a child forked in the meantime holds the file open too.
            fcntl.flock(stream, fcntl.LOCK_UN)
