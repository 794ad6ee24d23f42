"""What may go wrong with a run's config, data and disks, looked at before it starts."""

import os
import shutil
import tempfile
import urllib.error
import urllib.request
from itertools import accumulate
from pathlib import Path

import torch
from tqdm import tqdm

from infogan_dist.config.batch_share import launched_share
from infogan_dist.config.load import read_config
from infogan_dist.data.fetch import NetworkError, Store, redact_url
from infogan_dist.data.images import decode_image
from infogan_dist.data.order import DRIFT_WARNING_THRESHOLD, Order
from infogan_dist.data.shards import Manifest, fetch_shard, load_manifest, resolve, samples_of
from infogan_dist.errors import DataError
from infogan_dist.model.latents import LatentSpec
from infogan_dist.model.networks import build_networks
from infogan_dist.preflight.machine import FAIL, OK, UNSEEN, WARN, Case, Finding, Findings, size
from infogan_dist.runtime import checkpoint, tracking
from infogan_dist.runtime.distributed import resolve_precision, uses_cuda
from infogan_dist.runtime.run_folder import RunFolder

PREFETCH = 2  # decoded shards that each loading subprocess holds ready (torch's DataLoader)
SHARE_OF_MEMORY = 0.8  # that kept images may take; Python, torch and the networks need the rest
REMOTE_BYTES = 10 * 2**30  # that are read of a set from afar
W_AND_B_TIMEOUT_S = 5
SHARED_MEMORY = Path("/dev/shm")
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # a container's, in bytes, or "max"


def config(case: Case) -> Findings:
    """Files and overrides, read as training reads them."""
    case.config = read_config(case.words)
    train = case.config.train
    length = f"{train.steps:,} steps" if train.steps is not None else f"{train.epochs:g} epochs"
    yield Finding(
        OK, f"{case.config.run}: {length}, images from {redact_url(case.config.data.shards)}", alike=True
    )


def precision(case: Case) -> Findings:
    """What the device can compute in."""
    assert case.config
    asked = resolve_precision(case.config, uses_cuda())
    if asked == "bf16" and uses_cuda() and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding(WARN, "bf16 is only emulated by this GPU: slow", "train.precision=fp16, or fp32")
    elif case.is_first:
        yield Finding(OK, asked)


def world(case: Case) -> Findings:
    """The processes asked for and got, and whether they can share out a batch."""
    assert case.config
    launched_share(case.config)
    train, lanes = case.config.train, case.config.data.lanes // case.world
    micro = train.batch_size // case.world // train.accumulation
    if case.is_first:
        parts = f"{case.world} process(es) x {train.accumulation} micro-batch(es) x {micro} images"
        yield Finding(OK, f"a global batch of {train.batch_size} is {parts}; {lanes} lane(s) each")


def trackers(case: Case) -> Findings:
    """Whether they are installed; for W&B, how it would log and whether its server is there."""
    assert case.config
    asked = case.config.tracking
    tracking.check_trackers(case.config)
    if not case.is_first:
        return
    if "wandb" not in asked.trackers:
        yield Finding(OK, ", ".join(asked.trackers) or "the run folder alone")
        return
    mode = tracking.wandb_mode(asked.wandb_mode)
    why = "somebody is logged in" if mode == "online" else "nobody is logged in: `wandb login` changes that"
    if asked.wandb_mode != "auto":
        why = "as tracking.wandb_mode says"
    elif os.environ.get("WANDB_MODE") == mode:
        why = "as WANDB_MODE says"
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if mode == "online" and not _answers(server):
        remedy = "training goes on and logs offline; `wandb sync RUN/wandb/offline-*` later"
        said = f"W&B online, {why}, but {redact_url(server)} cannot be reached within {W_AND_B_TIMEOUT_S} s"
        yield Finding(WARN, said, remedy)
    else:
        yield Finding(OK, f"{', '.join(asked.trackers)}; W&B {mode}, {why}")


def _answers(url: str) -> bool:
    """Whether a server says anything, through a proxy where the environment names one."""
    try:
        urllib.request.urlopen(url, timeout=W_AND_B_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, ValueError):
        return False
    return True


def manifest(case: Case) -> Findings:
    """The list of shards."""
    assert case.config
    found = case.manifest = load_manifest(case.config.data.shards)
    total, shape = sum(s.bytes for s in found.shards), "x".join(map(str, found.image_shape))
    seen = f"{found.name}: {found.samples:,} images of {shape} in {len(found.shards):,} shards, {size(total)}"
    yield Finding(OK, seen, alike=True)
    if case.config.data.test is not None:
        held_out = load_manifest(case.config.data.test)
        if held_out.image_shape != found.image_shape:
            said = f"data.test: images of {list(held_out.image_shape)}, not {list(found.image_shape)}"
            yield Finding(FAIL, said, "make both sets of one size and mode")


def lanes(case: Case) -> Findings:
    """How evenly the shards can be dealt."""
    assert case.config
    assert case.manifest
    if not case.is_first:
        return
    sizes, count = [s.samples for s in case.manifest.shards], case.config.data.lanes
    drift = Order(case.config.seed, sizes, count, case.config.real_batch).drift()
    remedy = f"make the set anew with --shards a multiple of {count}, or set data.lanes"
    if len(sizes) < count:
        yield Finding(WARN, f"{len(sizes)} shards for {count} lanes: several read the same", remedy)
    if drift > DRIFT_WARNING_THRESHOLD:
        said = f"shards hold {min(sizes):,} to {max(sizes):,} images: passes overlap by {drift:.0%} of a pass"
        yield Finding(WARN, said, remedy)
    elif len(sizes) >= count:
        yield Finding(OK, f"{len(sizes):,} shards for {count} lanes; passes overlap by {drift:.1%} of a pass")


def networks(case: Case) -> Findings:
    """Whether the tables fit the codes and the images; how large a checkpoint will be."""
    assert case.config
    assert case.manifest
    spec = LatentSpec(case.config.noise, case.config.codes)
    built = build_networks(case.config.networks, spec, case.manifest.image_shape, case.config.seed)
    weights = [sum(p.numel() for p in network.parameters()) for network in built]
    # Each with Adam's two moments, and the averaged generator; buffers are batch norm's statistics.
    buffers = sum(b.numel() for network in (*built, built[0]) for b in network.buffers())
    numbers = 3 * sum(weights) + weights[0] + buffers
    case.checkpoint_bytes = numbers * (8 if case.config.train.precision == "fp64" else 4)
    if case.is_first:
        named = zip(("generator", "discriminator", "recognition"), weights, strict=True)
        seen = ", ".join(f"{name} {count:,}" for name, count in named)
        yield Finding(OK, f"parameters: {seen}; a checkpoint takes {size(case.checkpoint_bytes)}")


def shards(case: Case) -> Findings:
    """Whether each shard is there and whole, and its first image readable; a process looks at its share."""
    assert case.config
    assert case.manifest
    if case.world > 1 and case.store is None:
        yield Finding(UNSEEN, "not looked at: the processes have not met")
        return
    count, read = len(case.manifest.shards), _to_read(case.manifest)
    quiet = not (case.config.tracking.progress and case.is_first)
    mine = range(case.rank, read, case.world)
    level = WARN if case.config.data.on_error == "skip" else FAIL
    for i in tqdm(mine, desc="shards", unit="shard", leave=False, disable=quiet, dynamic_ncols=True):
        try:
            _look_into(case.manifest, i)
        except NetworkError:
            raise  # of the server, and so of all shards that are left
        except DataError as error:
            yield Finding(level, str(error), shared=True)
    if case.is_first:
        part = "all" if read == count else f"the first {read:,} of {count:,} (more would take long from afar)"
        yield Finding(OK, f"{part} read, to the last byte; those not named here are whole")


def _to_read(manifest: Manifest) -> int:
    """How many shards are read: all that lie here, and so many from afar as REMOTE_BYTES allow."""
    near = sum("://" not in resolve(manifest, shard) for shard in manifest.shards)
    within = sum(end <= REMOTE_BYTES for end in accumulate(s.bytes for s in manifest.shards))
    return len(manifest.shards) if near == len(manifest.shards) else max(1, within)


def _look_into(manifest: Manifest, index: int) -> None:
    """Reads a shard and decodes its first image. Raises `DataError`."""
    url, content = fetch_shard(manifest, index, Store())
    key, member = next(samples_of(content, url), ("its first sample", {}))
    decode_image(member, f"{url}, {key}", manifest.image_shape, manifest.fit)


def shared_memory(case: Case, folder: Path = SHARED_MEMORY) -> Findings:
    """Whether what loading subprocesses hand over fits where they put it."""
    assert case.config
    assert case.manifest
    workers = case.config.data.workers
    if workers == 0 or not folder.is_dir():
        yield Finding(OK, "none needed")
        return
    ready = min(PREFETCH * workers, len(case.manifest.shards))
    largest = max(s.samples for s in case.manifest.shards) * _bytes_per_image(case.manifest)
    need, free = case.local_world * ready * largest, shutil.disk_usage(folder).free
    said = (
        f"{folder} has {size(free)} free; {case.local_world} process(es) x {ready} shards need {size(need)}"
    )
    if need > free:
        remedy = "docker --shm-size, Kubernetes: an emptyDir of medium Memory there; or data.workers=0"
        yield Finding(FAIL, said, remedy)
    elif case.is_first:
        yield Finding(OK, said)


def _bytes_per_image(manifest: Manifest) -> int:
    channels, height, width = manifest.image_shape
    return channels * height * width + 9  # with its label and whether it is a substitute


def memory(case: Case, limit: Path = MEMORY_LIMIT) -> Findings:
    """Whether the images that the processes of a machine keep fit into its memory."""
    assert case.config
    assert case.manifest
    kept = min(case.config.data.cache_mib * 2**20, case.manifest.samples * _bytes_per_image(case.manifest))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if limit.is_file() and limit.read_text().strip().isdecimal():
        there = min(there, int(limit.read_text()))
    said = (
        f"{case.local_world} process(es) keep up to {size(kept)} of images each, of {size(there)} of memory"
    )
    if kept * case.local_world > SHARE_OF_MEMORY * there:
        fits = int(SHARE_OF_MEMORY * there / case.local_world / 2**20)
        yield Finding(WARN, said, f"data.cache_mib={fits}")
    elif case.is_first:
        yield Finding(OK, said)


def run_folder(case: Case) -> Findings:
    """Whether the run may have its folder, and can write there."""
    assert case.config
    folder = Path(case.config.run)
    if not case.is_first:
        return
    if said := _refuses(folder):
        yield Finding(FAIL, f"{folder} cannot be written ({said})", "set run=FOLDER")
        return
    run = RunFolder(folder)
    if run.lock_path.exists():
        run.lock()
        run.unlock()
    yield Finding(OK, f"{folder} can be written, and no run holds it")


def checkpoints(case: Case) -> Findings:
    """What the run would go on from, on every process alike."""
    assert case.config
    assert case.manifest
    folder, start = Path(case.config.run), case.config.train.init_from
    if case.is_first:
        damaged = [p.name for p in checkpoint.step_folders(folder) if checkpoint.find(p) is None]
        if damaged:
            said = f"{len(damaged)} damaged in {folder}: {', '.join(damaged[:5])}"
            yield Finding(WARN, said, "they are passed over; remove them")
    resumed = RunFolder(folder).resume_point(case.config, case.manifest)
    if resumed is None and start is not None:
        checkpoint.require(Path(start))
    told = f"goes on from step {resumed.step:,}" if resumed else "starts at step 0"
    yield Finding(OK, told, alike=True)


def disk(case: Case) -> Findings:
    """Room for the checkpoints that the run will keep, and for one that is being written."""
    assert case.config
    assert case.manifest
    assert case.checkpoint_bytes
    if not case.is_first:
        return
    folder, keeps, total = (
        Path(case.config.run),
        case.config.checkpoint,
        case.config.length(case.manifest.samples),
    )
    count = min(keeps.keep + 1, total // keeps.every + 1) + (keeps.best is not None)
    count += total // keeps.keep_every if keeps.keep_every else 0
    count = max(1, count - len(checkpoint.step_folders(folder)))
    need, free = count * case.checkpoint_bytes, shutil.disk_usage(_nearest(folder)).free
    said = f"{size(free)} free for {folder}; {count} more checkpoint(s) need {size(need)}"
    if need > free:
        yield Finding(FAIL, said, "make room, set run=FOLDER, or keep fewer: checkpoint.keep, keep_every")
    else:
        yield Finding(OK, said)


def disk_cache(case: Case) -> Findings:
    """Room for the shards from afar that are to be kept; trouble with it never stops a run."""
    assert case.config
    if case.config.data.disk_cache is None:
        if case.is_first:
            yield Finding(OK, "none asked for")
        return
    folder, limit = Path(case.config.data.disk_cache), case.config.data.disk_cache_gib * 2**30
    remedy = "set data.disk_cache, data.disk_cache_gib; training goes on without what does not fit"
    if said := _refuses(folder):
        yield Finding(WARN, f"{folder} cannot be written ({said})", remedy)
        return
    taken = sum(p.stat().st_size for p in folder.iterdir() if p.is_file()) if folder.is_dir() else 0
    room = shutil.disk_usage(_nearest(folder)).free + taken
    said = f"{folder} may take {size(limit)}; {size(room)} are free or its own"
    if limit > room:
        yield Finding(WARN, said, remedy)
    elif case.is_first:
        yield Finding(OK, said)


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(p for p in (folder, *folder.absolute().parents) if p.exists())


def _refuses(folder: Path) -> str | None:
    """Why nothing can be written in a folder that is there or to be made; None if it can. Leaves no trace."""
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)) as probe:
            probe.write(b"0")
            probe.flush()
    except OSError as error:
        return error.strerror
    return None
