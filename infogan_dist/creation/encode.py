"""Samples of a source as parts of tar files, encoded on all cores.

The bytes do not depend on the number of processes: each process encodes whole samples, and the first one
concatenates them in order.
"""

import json
import multiprocessing
import os
import signal
import sys
import tarfile
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from infogan_dist.creation.source import Source
from infogan_dist.data.images import decode_image, encode_png
from infogan_dist.data.shards import FACTORS_TYPE, LABEL_TYPE, NO_LABEL
from infogan_dist.errors import DataError

PARALLEL_S = 2.0  # Less work than this is done by one process: starting others takes about as long.
PARENT_POLL_S = 1.0
JPEG_START = b"\xff\xd8\xff"
END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)


def seconds_per_sample(source: Source) -> float:
    """Return how long the source's first image takes to be read and encoded."""
    encode_samples(source, [0])  # imports Pillow's decoder
    start = time.monotonic()
    encode_samples(source, [0])
    return max(time.monotonic() - start, 1e-6)


def usable_processes(seconds: float) -> int:
    """Return the number of processes for so many seconds of work: all cores, or one.

    Other processes are forked, because a source may contain what cannot be sent to them, such as open files
    and functions. Where forking is not safe, there is one process.
    """
    if seconds < PARALLEL_S or sys.platform != "linux":
        return 1
    return len(os.sched_getaffinity(0))


def encode_chunks(
    source: Source, chunks: Sequence[Sequence[int]], processes: int
) -> Generator[bytes, None, None]:
    """Yield the part of a tar file for each chunk, in order.

    Args:
        source: the images.
        chunks: numbers of the images of each chunk.
        processes: number of processes that encode; one: the calling process does.

    Raises:
        DataError: the source cannot read an image, or a process was killed.
    """
    if processes == 1:
        yield from (encode_samples(source, chunk) for chunk in chunks)
        return
    context = multiprocessing.get_context("fork")
    pending: deque[Future[bytes]] = deque()
    pool = ProcessPoolExecutor(processes, context, _set_up_process, (source, os.getpid()))
    try:
        for chunk in chunks:
            pending.append(pool.submit(_encode_here, chunk))
            if len(pending) > 2 * processes:  # bounds the memory if the disk is slower than the encoding
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            f"{source.name}: a process that encodes images was killed, probably because memory ran out; free "
            "memory, or allow fewer cores (taskset)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def encode_samples(source: Source, numbers: Sequence[int]) -> bytes:
    """Return the images of these numbers, with labels and factors, as a part of a tar file.

    The image becomes a PNG, or remains a JPEG with `Source.file_of`, the label becomes a .cls file, and the
    factors, if there are any, a .factors.json file.
    The same samples give the same bytes: the file contains neither times nor owners.
    """
    return b"".join(_encode_sample(source, int(i)) for i in numbers)


def end_of_tar(size: int) -> bytes:
    """Return the end of a tar file whose samples take `size` bytes."""
    return END_OF_TAR + bytes(-(size + len(END_OF_TAR)) % tarfile.RECORDSIZE)


def _encode_sample(source: Source, i: int) -> bytes:
    try:
        array, label = source.read(i)
        jpeg = None if source.file_of is None else _jpeg_of(source.file_of(i), array)
    except OSError as error:
        raise DataError(f"{source.name}: image {i} cannot be read ({error}); replace it") from None
    factors = source.factors_of(i)
    members = {}  # in alphabetical order
    if label != NO_LABEL:
        members[LABEL_TYPE] = str(label).encode()
    if factors:
        members[FACTORS_TYPE] = json.dumps(list(factors)).encode()
    ending, content = ("png", encode_png(array)) if jpeg is None else ("jpg", jpeg)
    members[ending] = content
    return b"".join(_tar_member(f"{i:09d}.{ending}", content) for ending, content in members.items())


def _jpeg_of(content: bytes, array: np.ndarray) -> bytes | None:
    """Return an image file if it is a JPEG that is read from a shard as these pixels, else None."""
    if not content.startswith(JPEG_START):
        return None
    pixels = decode_image({"jpg": content}, "the file", None, fit=False)
    return content if np.array_equal(pixels, array) else None


def _tar_member(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o444
    return b"".join((info.tobuf(), content, bytes(-len(content) % tarfile.BLOCKSIZE)))


_source: Source  # of a process that encodes


def _set_up_process(source: Source, parent: int) -> None:
    global _source
    _source = source
    if "torch" in sys.modules:  # Its threads do not exist after a fork, and a data set may use it.
        sys.modules["torch"].set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the first process, which ends the others.
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process soon after its parent; a process that waits for work would not notice."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)


def _encode_here(numbers: Sequence[int]) -> bytes:
    return encode_samples(_source, numbers)
