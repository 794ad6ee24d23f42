"""Faults of checkpoints, logs and disks."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from drill.bench import LOG_EVERY, STEPS, Drill, DrillError, Fault


def damage_checkpoint(drill: Drill, run: Path, damage: Callable[[Path], object]) -> str:
    """Damage the newest checkpoint: the run continues from the one before it."""
    drill.complete(run, f"train.steps={STEPS // 2}")
    newest = max((run / "checkpoints").iterdir())
    damage(newest)
    message = drill.resume_message(drill.complete(run))
    if newest.name in message:
        raise DrillError(f"the damaged checkpoint was used: {message}")
    return message


def truncate_file(path: Path) -> None:
    """Remove the second half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bit(path: Path, position: int = -7) -> None:
    """Flip a bit of the byte at a position."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """Mount a small file system at a path; this needs root."""
    path.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True, capture_output=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill_disk(drill: Drill, run: Path) -> str:
    """Fill the disk during training: the run ends with an error, and continues once there is space again."""
    with small_disk(run, "1m"):
        started = drill.start(run, "checkpoint.keep=100", "checkpoint.every=5")
        message = drill.expect_error(started, "No space left")
        for old in sorted((run / "checkpoints").iterdir())[:-1]:
            for file in old.iterdir():
                file.unlink()
            old.rmdir()
        drill.complete(run)
        copy = run.with_name(run.name + ".copy")
        subprocess.run(["cp", "-a", run, copy], check=True)
    run.rmdir()
    copy.rename(run)
    return message


def use_read_only_disk(drill: Drill, run: Path) -> str:
    """Start in a run folder that is read-only, then in a writable one."""
    with small_disk(run, "1m"):
        subprocess.run(["mount", "-o", "remount,ro", run], check=True)
        message = drill.expect_error(drill.start(run), "cannot be written", "Read-only")
    run.rmdir()
    drill.complete(run)
    return message


def start_twice(drill: Drill, run: Path) -> str:
    """Start a second run in the folder of one that is going: the second ends, the first is not affected."""
    first = drill.start(run)
    first.wait_for_step(LOG_EVERY)
    first.process.send_signal(signal.SIGSTOP)
    message = drill.expect_error(drill.start(run), "belongs to a run that is still going")
    first.process.send_signal(signal.SIGCONT)
    first.wait()
    return message


def append_log_lines(drill: Drill, run: Path) -> str:
    """Append lines of later steps to the log, the last one incomplete: the run removes them."""
    drill.complete(run, f"train.steps={STEPS // 2}")
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 125, "d/loss": 1}\n{"step": 130, "d/lo')
    drill.complete(run)
    if (run / "metrics.jsonl").read_bytes() != (drill.reference(1) / "metrics.jsonl").read_bytes():
        raise DrillError("metrics.jsonl differs from the undisturbed run's")
    return "metrics.jsonl identical to the undisturbed run's"


def faults() -> list[Fault]:
    """Return the faults of a run folder."""

    def newest(damage: Callable[[Path], object]) -> Callable[[Drill, Path], str]:
        return partial(damage_checkpoint, damage=damage)

    return [
        Fault(
            "checkpoint-cut",
            "weights of the newest checkpoint truncated",
            newest(lambda p: truncate_file(p / "generator.safetensors")),
        ),
        Fault(
            "checkpoint-flip",
            "a bit of its optimizer flipped",
            newest(lambda p: flip_bit(p / "optimizers.pt")),
        ),
        Fault("checkpoint-lacks", "its index missing", newest(lambda p: (p / "files.json").unlink())),
        Fault("checkpoint-empty", "its state emptied", newest(lambda p: (p / "run.json").write_text(""))),
        Fault("disk-full", "the disk fills up", fill_disk),
        Fault("disk-read-only", "the run folder is read-only", use_read_only_disk),
        Fault("two-runs", "a second run in the same folder", start_twice),
        Fault("torn-logs", "log lines beyond the checkpoint, one incomplete", append_log_lines),
    ]
