"""Caches never exceed their limits, and never return anything but the complete file."""

import errno
import hashlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from infogan_dist import files
from infogan_dist.console import set_up_logging
from infogan_dist.data.cache import MemoryCache
from infogan_dist.data.fetch import Store
from tests.data.web_server import Fault, WebServer

CONTEXT = multiprocessing.get_context("spawn")
Request = tuple[str, int, str]  # arguments of `Store.read`


def test_a_memory_cache_takes_what_fits_and_evicts_nothing():
    cache: MemoryCache[int, str] = MemoryCache(10)
    assert [cache.add(i, str(i), size) for i, size in enumerate((4, 7, 6, 1, 0))] == [
        True, False, True, False, True,
    ]  # fmt: skip
    assert [i in cache for i in range(5)] == [True, False, True, False, True]
    assert (len(cache), cache.free, cache[2]) == (3, 0, "2")


def put(web: WebServer, *names: str, size: int = 1000) -> dict[str, Request]:
    """Put files with different contents on the server; return the arguments of `read` by name."""
    for name in names:
        web.files[f"/{name}"] = hashlib.sha256(name.encode()).digest() * (size // 32) + bytes(size % 32)
    sums = {name: hashlib.sha256(web.files[f"/{name}"]).hexdigest() for name in names}
    return {name: (f"{web.url}/{name}", size, sums[name]) for name in names}


def cached_files(folder: Path, suffix: str = "") -> list[Path]:
    return [p for p in folder.iterdir() if p.suffix == suffix]


def test_files_of_the_same_name_are_cached_separately(web: WebServer, tmp_path: Path):
    requests = put(web, "train/0.tar", "val/0.tar", "val/0.tar?v=2")
    web.files["/val/0.tar"] = web.files["/val/0.tar?v=2"]
    store = Store(tmp_path, 1 << 20)
    for name in ("train/0.tar", "val/0.tar?v=2", "train/0.tar", "val/0.tar?v=2"):
        content = store.read(*requests[name])
        assert content == web.files[f"/{name}"]
    assert len(web.requests) == len(cached_files(tmp_path)) == 2


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"?" + b[1:], lambda b: b""])
def test_a_damaged_cached_file_is_downloaded_again(
    web: WebServer, tmp_path: Path, damage: Callable[[bytes], bytes]
):
    request, store = put(web, "x")["x"], Store(tmp_path, 1 << 20)
    store.read(*request)
    (path,) = cached_files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    for _ in range(2):
        assert store.read(*request) == web.files["/x"]
    assert len(web.requests) == 2


def test_a_file_without_a_checksum_is_not_cached(web: WebServer, tmp_path: Path):
    url, size, _ = put(web, "manifest.json")["manifest.json"]
    for _ in range(2):
        Store(tmp_path, 1 << 20).read(url, size)
    assert len(web.requests) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_least_recently_used_files_are_removed(web: WebServer, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("not a file of the cache")
    requests, store = put(web, "a", "b", "c", "d"), Store(tmp_path, 3000)
    for name in ("a", "b", "c", "a", "d"):  # b is removed
        store.read(*requests[name])
    assert sum(p.stat().st_size for p in cached_files(tmp_path)) == 3000
    before = len(web.requests)
    for name in ("a", "c", "d"):
        assert store.read(*requests[name]) == web.files[f"/{name}"]
    assert len(web.requests) == before
    store.read(*requests["b"])
    assert len(web.requests) == before + 1
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize("is_size_known", [True, False])
def test_a_file_larger_than_the_cache_is_read_and_displaces_nothing(
    web: WebServer, tmp_path: Path, is_size_known: bool
):
    requests, store = put(web, "a"), Store(tmp_path, 3000)
    store.read(*requests["a"])
    url, size, sha256 = put(web, "large", size=3001)["large"]
    assert store.read(url, size if is_size_known else None, sha256) == web.files["/large"]
    assert [p.stat().st_size for p in cached_files(tmp_path)] == [1000]


@pytest.mark.parametrize("is_size_known", [True, False])
def test_a_file_larger_than_the_cache_costs_one_warning(
    web: WebServer, tmp_path: Path, is_size_known: bool, capsys: pytest.CaptureFixture[str]
):
    set_up_logging()
    store, requests = Store(tmp_path, 3000), put(web, "a", "b", size=3001)
    for url, size, sha256 in requests.values():
        store.read(url, size if is_size_known else None, sha256)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"a shard of 3,001 bytes does not fit in a cache of .* set data\.disk_cache_gib", line)


def test_the_folder_is_not_listed_for_each_file(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    listings: list[object] = []
    scandir = os.scandir

    def recorded_scandir(path: Path):
        listings.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", recorded_scandir)
    monkeypatch.setattr(Path, "iterdir", recorded_scandir)
    requests, store = list(put(web, *map(str, range(40))).values()), Store(tmp_path, 10_000)
    for request in requests[:10]:  # fill the cache
        store.read(*request)
    assert len(listings) <= 1
    for request in requests[10:]:  # 30 removals of 10 files each listing
        store.read(*request)
    assert len(listings) <= 1 + 3
    assert sum(1 for entry in scandir(tmp_path) if len(entry.name) == 64) == 10


def test_a_file_that_was_used_after_the_listing_is_not_removed(web: WebServer, tmp_path: Path):
    requests, store = put(web, *"abcdefg"), Store(tmp_path, 4000)
    for name in "abcde":  # removes a, and b is the next candidate
        store.read(*requests[name])
    Store(tmp_path, 4000).read(*requests["b"])  # by another process
    store.read(*requests["f"])  # removes c
    before = len(web.requests)
    for name in "bdef":
        store.read(*requests[name])
    assert len(web.requests) == before


def test_a_wrong_total_is_corrected(web: WebServer, tmp_path: Path):
    requests, store = put(web, *"abcd"), Store(tmp_path, 3000)
    for text in ("999999999", "none", ""):
        (tmp_path / "all.lock").write_text(text)
        for name in "abc":
            store.read(*requests[name])
        assert len(cached_files(tmp_path)) == 3
        (tmp_path / hashlib.sha256(requests["a"][2].encode()).hexdigest()).unlink()


def test_no_file_stays_behind_for_each_shard(web: WebServer, tmp_path: Path):
    requests, store = put(web, *"abcd"), Store(tmp_path, 2000)
    (tmp_path / f"{'0' * 64}.lock").touch()  # of an earlier version
    for request in requests.values():
        store.read(*request)
    others = {path.name for path in tmp_path.iterdir()} - {path.name for path in cached_files(tmp_path)}
    assert others == {"all.lock", "keys.lock"}


def test_a_new_token_does_not_invalidate_the_cache(web: WebServer, tmp_path: Path):
    url, size, sha256 = put(web, "a")["a"]
    for token in ("?token=1", "?token=2"):
        assert Store(tmp_path, 3000).read(url + token, size, sha256) == web.files["/a"]
    assert len(web.requests) == 1


@pytest.mark.parametrize("name", ["{}.part", ".{}.4711.part"])
def test_partial_files_of_killed_writers_are_never_read_and_are_removed(
    web: WebServer, tmp_path: Path, name: str
):
    requests, store = put(web, "a", "b"), Store(tmp_path, 3000)
    for url, *_ in requests.values():
        (tmp_path / name.format(hashlib.sha256(url.encode()).hexdigest())).write_bytes(b"half")
    assert store.read(*requests["a"]) == web.files["/a"]
    assert cached_files(tmp_path, ".part") == []


def test_a_cache_that_cannot_be_created_costs_one_warning(web: WebServer, tmp_path: Path, capsys):
    set_up_logging()
    (tmp_path / "file").touch()
    requests, store = put(web, "a", "b"), Store(tmp_path / "file" / "cache", 3000)
    for name in ("a", "b"):
        assert store.read(*requests[name]) == web.files[f"/{name}"]
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"warning: .*/cache: the cache cannot be written \(Not a directory\); .*", line)


def test_a_full_disk_costs_one_warning(
    web: WebServer, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    set_up_logging()
    monkeypatch.setattr(files.os, "replace", fail)
    requests, store = put(web, "a", "b"), Store(tmp_path, 3000)
    for name in ("a", "b"):
        assert store.read(*requests[name]) == web.files[f"/{name}"]
    assert capsys.readouterr().err.count("warning: ") == 1
    assert cached_files(tmp_path) + cached_files(tmp_path, ".part") == []


def read_all(store: Store, requests: list[Request]) -> None:
    for url, size, sha256 in requests:
        store.read(url, size, sha256)


def test_of_several_processes_one_downloads_and_the_others_wait(web: WebServer, tmp_path: Path):
    requests = list(put(web, "a", "b", "c", size=1 << 20).values())
    web.faults = [Fault(delay=0.5)] * 3
    processes = [
        CONTEXT.Process(target=read_all, args=(Store(tmp_path, 1 << 30), requests[i:] + requests[:i]))
        for i in (0, 0, 1, 2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [p.exitcode for p in processes] == [0] * 4
    assert sorted(path for path, _ in web.requests) == ["/a", "/b", "/c"]
    assert web.sent == 3 << 20


def test_several_processes_may_free_space_at_once(web: WebServer, tmp_path: Path):
    requests = list(put(web, *(f"f{i}" for i in range(12))).values())
    processes = [
        CONTEXT.Process(target=read_all, args=(Store(tmp_path, 3500), (requests[i:] + requests[:i]) * 5))
        for i in (0, 4, 8)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [p.exitcode for p in processes] == [0] * 3
    assert sum(p.stat().st_size for p in cached_files(tmp_path)) == 3000


def test_a_process_killed_while_it_downloads_does_not_block_the_others(web: WebServer, tmp_path: Path):
    request, store = put(web, "a", size=100_000)["a"], Store(tmp_path, 1 << 20)
    web.faults = [Fault(send=50_000, stall=True)]
    process = CONTEXT.Process(target=read_all, args=(store, [request]))
    process.start()
    assert web.answered.wait(30)
    waiting = threading.Thread(target=read_all, args=(store, [request]))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join(30)
    waiting.join(10)
    assert not waiting.is_alive()
    assert store.read(*request) == web.files["/a"]
    assert len(web.requests) == 2
