"""Checks of the run folder (permissions, lock, checkpoints, space) and of the cache of remote shards."""

import shutil
import tempfile
from pathlib import Path

from infogan_dist.config.schema import CheckpointConfig
from infogan_dist.preflight.finding import FAIL, OK, WARN, Finding, Findings, PreflightContext, format_bytes
from infogan_dist.runtime import checkpoint
from infogan_dist.runtime.run_folder import RunFolder

LISTED_CHECKPOINTS = 5  # damaged checkpoints that are named


def check_run_folder(context: PreflightContext) -> Findings:
    """Check that the run folder can be written and that no other run uses it."""
    assert context.config
    if not context.place.is_first:
        return
    run = RunFolder(Path(context.config.run))
    cause = _write_error(run.path)
    if cause is not None:
        yield Finding(FAIL, f"{run.path} cannot be written ({cause})", "set run=FOLDER")
        return
    if run.lock_path.exists():  # else locking would create the file
        run.lock()
        run.unlock()
    yield Finding(OK, f"{run.path} can be written, and no other run uses it")


def check_checkpoints(context: PreflightContext) -> Findings:
    """Check the checkpoint that the run continues from, on every process."""
    assert context.config
    assert context.manifest
    run, init_from = RunFolder(Path(context.config.run)), context.config.train.init_from
    if context.place.is_first:
        folders = checkpoint.step_folders(run.path)
        damaged = [folder.name for folder in folders if checkpoint.find(folder) is None]
        if damaged:
            names = ", ".join(damaged[:LISTED_CHECKPOINTS])
            message = f"{len(damaged)} damaged in {run.path}: {names}"
            yield Finding(WARN, message, "they are ignored; remove them")
    resumed = run.resume_point(context.config, context.manifest)
    if resumed is None and init_from is not None:
        checkpoint.require(Path(init_from))
    message = f"the run continues from step {resumed.step:,}" if resumed else "the run starts at step 0"
    yield Finding(OK, message, uniform=True)


def check_disk(context: PreflightContext) -> Findings:
    """Check the disk space for the checkpoints that the run keeps, and for one that is being written."""
    assert context.config
    assert context.manifest
    assert context.checkpoint_bytes
    if not context.place.is_first:
        return
    folder = Path(context.config.run)
    total = _checkpoint_count(context.config.checkpoint, context.config.length(context.manifest.samples))
    count = max(1, total - len(checkpoint.step_folders(folder)))
    need, free = count * context.checkpoint_bytes, shutil.disk_usage(_existing_parent(folder)).free
    message = f"{format_bytes(free)} free for {folder}; {count} more checkpoint(s) need {format_bytes(need)}"
    if need > free:
        remedy = "make room, set run=FOLDER, or keep fewer (checkpoint.keep, checkpoint.keep_every)"
        yield Finding(FAIL, message, remedy)
    else:
        yield Finding(OK, message)


def _checkpoint_count(config: CheckpointConfig, steps: int) -> int:
    """Return the largest number of checkpoints that a run of `steps` steps has on disk at the same time."""
    count = min(config.keep + 1, steps // config.every + 1) + (config.best is not None)
    return count + (steps // config.keep_every if config.keep_every else 0)


def check_disk_cache(context: PreflightContext) -> Findings:
    """Check the disk space for cached remote shards; only warn, as training continues without a cache."""
    assert context.config
    config = context.config.data
    if config.disk_cache is None:
        if context.place.is_first:
            yield Finding(OK, "not used")
        return
    folder, limit = Path(config.disk_cache), config.disk_cache_gib * 2**30
    remedy = "set data.disk_cache or data.disk_cache_gib; training continues without what does not fit"
    cause = _write_error(folder)
    if cause is not None:
        yield Finding(WARN, f"{folder} cannot be written ({cause})", remedy)
        return
    used = sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) if folder.is_dir() else 0
    available = shutil.disk_usage(_existing_parent(folder)).free + used
    message = f"{folder} may grow to {format_bytes(limit)}; {format_bytes(available)} are available for it"
    if limit > available:
        yield Finding(WARN, message, remedy)
    elif context.place.is_first:
        yield Finding(OK, message)


def _existing_parent(folder: Path) -> Path:
    """Return the folder itself, or the nearest folder above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _write_error(folder: Path) -> str | None:
    """Return why a folder, which need not exist yet, cannot be written; None if it can. Leaves no file."""
    try:
        with tempfile.TemporaryFile(dir=_existing_parent(folder)) as probe:
            probe.write(b"0")
            probe.flush()
    except OSError as error:
        return error.strerror
    return None
