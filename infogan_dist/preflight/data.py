"""Checks of a run's data: its manifest, lanes and shards, and the memory that decoded images need."""

import math
import os
import shutil
from itertools import accumulate
from pathlib import Path

from infogan_dist.console import progress
from infogan_dist.data.fetch import NetworkError, Store
from infogan_dist.data.images import decode_image
from infogan_dist.data.order import Order
from infogan_dist.data.resident import should_hold_images
from infogan_dist.data.shards import Manifest, fetch_shard, load_manifest, resolve
from infogan_dist.data.tars import samples_of
from infogan_dist.data.urls import is_remote
from infogan_dist.errors import DataError
from infogan_dist.preflight.finding import (
    FAIL,
    OK,
    SKIPPED,
    WARN,
    Finding,
    Findings,
    PreflightContext,
    format_bytes,
)
from infogan_dist.runtime.device import process_device

PREFETCHED_SHARDS = 2  # decoded shards that each loading subprocess has ready (default of torch's DataLoader)
MAX_CACHE_SHARE = 0.8  # of the memory, for cached images; Python, torch and the networks need the rest
MAX_REMOTE_BYTES = 10 * 2**30  # read of a remote set
SHARED_MEMORY = Path("/dev/shm")
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container, in bytes, or "max"


def check_manifest(context: PreflightContext) -> Findings:
    """Read the manifest of the training set, and that of the test set if there is one."""
    assert context.config
    manifest = context.manifest = load_manifest(context.config.data.shards)
    shape = "x".join(map(str, manifest.image_shape))
    size = format_bytes(sum(shard.bytes for shard in manifest.shards))
    images = f"{manifest.name}: {manifest.samples:,} images of {shape}"
    yield Finding(OK, f"{images} in {len(manifest.shards):,} shards, {size}", uniform=True)
    if context.config.data.test is not None:
        test = load_manifest(context.config.data.test)
        if test.image_shape != manifest.image_shape:
            message = f"data.test: images of {list(test.image_shape)}, not {list(manifest.image_shape)}"
            yield Finding(FAIL, message, "create both sets with the same size and mode")


def check_lanes(context: PreflightContext) -> Findings:
    """Check how evenly the shards are divided among the lanes."""
    assert context.config
    assert context.manifest
    if not context.place.is_first:
        return
    sizes, lanes = context.manifest.shard_sizes, context.config.data.lanes
    order = Order(context.config.seed, sizes, lanes, context.config.real_batch)
    warning = order.drift_warning()
    if warning is not None:
        yield Finding(WARN, warning)
    else:
        drift = f"{order.drift():.1%} of an epoch"
        yield Finding(OK, f"{len(sizes):,} shards for {lanes} lanes; epochs overlap by {drift}")


def check_shards(context: PreflightContext) -> Findings:
    """Verify each shard's bytes and decode its first image; each process checks its share of the shards."""
    assert context.config
    assert context.manifest
    place, manifest = context.place, context.manifest
    if place.world > 1 and context.store is None:
        yield Finding(SKIPPED, "not checked, because the processes cannot communicate")
        return
    count, checked = len(manifest.shards), _checked_shards(manifest)
    level = WARN if context.config.data.on_error == "skip" else FAIL
    own = range(place.rank, checked, place.world)
    disable = not context.config.tracking.progress
    with progress(len(own), "shard", description="shards", disable=disable) as bar:
        for index in own:
            try:
                _check_shard(manifest, index)
            except NetworkError:
                raise  # it concerns the server, and therefore all remaining shards
            except DataError as error:
                yield Finding(level, str(error), shared=True)
            bar.update()
    if place.is_first:
        part = f"all {count:,} shards"
        if checked < count:
            limit = format_bytes(MAX_REMOTE_BYTES)
            part = f"the first {checked:,} of {count:,} shards (of a remote set at most {limit} are read)"
        yield Finding(OK, f"{part} were read and verified; those not listed here are complete")


def _checked_shards(manifest: Manifest) -> int:
    """Return how many shards are read: all of a local set, up to `MAX_REMOTE_BYTES` of a remote one."""
    if not any(is_remote(resolve(manifest, shard)) for shard in manifest.shards):
        return len(manifest.shards)
    ends = accumulate(shard.bytes for shard in manifest.shards)
    return max(1, sum(end <= MAX_REMOTE_BYTES for end in ends))


def _check_shard(manifest: Manifest, index: int) -> None:
    """Read a shard and decode its first image. Raises `DataError`."""
    url, content = fetch_shard(manifest, index, Store())
    key, member = next(samples_of(content, url), ("its first sample", {}))
    decode_image(
        member, f"{url}, {key}", manifest.image_shape, manifest.fit, manifest.background, manifest.image
    )


def check_memory(context: PreflightContext, limit_file: Path = MEMORY_LIMIT) -> Findings:
    """Check that the decoded images fit where they stay: on the device, or in the memory of this machine.

    Args:
        context: the run and its manifest.
        limit_file: file with the memory limit of the container.

    Raises:
        DataError: the images must stay on a device that has too little free memory.
    """
    assert context.config
    assert context.manifest
    settings, manifest = context.config.data, context.manifest
    device, processes = process_device(context.place), context.place.local_world
    total, remedy = manifest.samples * manifest.decoded_sample_bytes, "set data.device=host"
    held, shards, verb = total, _prefetched_shards(context), "hold"
    streaming = shards + settings.lanes // context.place.world
    if not should_hold_images(settings.device, manifest, device):
        held, verb, remedy = min(total, settings.cache_mib * 2**20), "cache up to", ""
        if held < total:  # Besides the cache, each lane holds the shard that it is reading.
            shards = streaming
    elif device.type == "cuda":
        if context.place.is_first:
            on_gpu = manifest.samples * math.prod(manifest.image_shape)  # Labels stay on the host.
            yield Finding(OK, f"{format_bytes(on_gpu)} of images stay on the GPU of each process")
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if limit_file.is_file() and limit_file.read_text().strip().isdecimal():
        memory = min(memory, int(limit_file.read_text()))
    reading = shards * _largest_shard(manifest)
    message = (
        f"{processes} process(es) {verb} {format_bytes(held)} of images each, and {format_bytes(reading)} "
        f"in {shards} shard(s) that are being read; the memory is {format_bytes(memory)}"
    )
    available = MAX_CACHE_SHARE * memory / processes
    if held + reading > available:
        fitting = int((available - streaming * _largest_shard(manifest)) // 2**20)
        smaller = f"set data.cache_mib={fitting}" if fitting >= 0 else "create the set with more shards"
        yield Finding(WARN, message, remedy or smaller)
    elif context.place.is_first:
        yield Finding(OK, message)


def check_shared_memory(context: PreflightContext, folder: Path = SHARED_MEMORY) -> Findings:
    """Check that the decoded shards which loading subprocesses hand over fit in shared memory.

    Args:
        context: the run and its manifest.
        folder: where shared memory is mounted.
    """
    assert context.config
    assert context.manifest
    workers, manifest = context.config.data.workers, context.manifest
    if workers == 0 or not folder.is_dir():
        yield Finding(OK, "not used")
        return
    processes, ready = context.place.local_world, _prefetched_shards(context)
    need, free = processes * ready * _largest_shard(manifest), shutil.disk_usage(folder).free
    message = (
        f"{folder} has {format_bytes(free)} free; "
        f"{processes} process(es) x {ready} shards need {format_bytes(need)}"
    )
    if need > free:
        remedy = (
            "enlarge it (docker: --shm-size, Kubernetes: an emptyDir of medium Memory mounted there), "
            "set data.workers=0, or create the set with more shards"
        )
        yield Finding(FAIL, message, remedy)
    elif context.place.is_first:
        yield Finding(OK, message)


def _prefetched_shards(context: PreflightContext) -> int:
    """Return how many decoded shards a process has at most in shared memory: ready ones, and one in use."""
    assert context.config
    assert context.manifest
    workers = context.config.data.workers
    return min(PREFETCHED_SHARDS * workers + 1, len(context.manifest.shards)) if workers else 0


def _largest_shard(manifest: Manifest) -> int:
    """Return the bytes of the largest decoded shard."""
    return max(manifest.shard_sizes) * manifest.decoded_sample_bytes
