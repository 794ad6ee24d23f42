"""Faults of checkpoints, logs and disks."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from drill.bench import LOG_EVERY, STEPS, Drill, Fault, NotSurvived


def damaged_checkpoint(drill: Drill, run: Path, damage: Callable[[Path], object]) -> str:
    """The newest checkpoint is damaged: the one before it is used."""
    drill.finish(run, f"train.steps={STEPS // 2}")
    newest = max((run / "checkpoints").iterdir())
    damage(newest)
    said = drill.finish(run)
    went_on = next(line for line in said.splitlines() if "going on from" in line)
    if newest.name in went_on:
        raise NotSurvived(f"the damaged checkpoint was used: {went_on}")
    return went_on.replace(str(drill.folder), "...")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, at: int = -7) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@contextmanager
def small_disk(where: Path, size: str) -> Iterator[None]:
    """A file system of its own; needs root."""
    where.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", where], check=True, capture_output=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def full_disk(drill: Drill, run: Path) -> str:
    """The disk fills up while training: the run says so; with room again it goes on."""
    with small_disk(run, "1m"):
        running = drill.start(run, "checkpoint.keep=100", "checkpoint.every=5")
        said = drill.refused(running, "No space left")
        for old in sorted((run / "checkpoints").iterdir())[:-1]:
            for file in old.iterdir():
                file.unlink()
            old.rmdir()
        drill.finish(run)
        keep = run.with_name(run.name + ".kept")
        subprocess.run(["cp", "-a", run, keep], check=True)
    run.rmdir()
    keep.rename(run)
    return said


def read_only(drill: Drill, run: Path) -> str:
    with small_disk(run, "1m"):
        subprocess.run(["mount", "-o", "remount,ro", run], check=True)
        said = drill.refused(drill.start(run), "cannot be written", "Read-only")
    run.rmdir()
    drill.finish(run)
    return said


def two_in_one_folder(drill: Drill, run: Path) -> str:
    first = drill.start(run)
    first.reach(LOG_EVERY)
    first.process.send_signal(signal.SIGSTOP)
    said = drill.refused(drill.start(run), "belongs to a run that is still going")
    first.process.send_signal(signal.SIGCONT)
    first.end()
    return said


def torn_logs(drill: Drill, run: Path) -> str:
    drill.finish(run, f"train.steps={STEPS // 2}")
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 125, "d/loss": 1}\n{"step": 130, "d/lo')
    drill.finish(run)
    if (run / "metrics.jsonl").read_bytes() != (drill.reference(1) / "metrics.jsonl").read_bytes():
        raise NotSurvived("metrics.jsonl differs from the undisturbed run's")
    return "metrics.jsonl identical to the undisturbed run's"


def faults() -> list[Fault]:
    """What may happen to a run folder."""

    def newest(damage: Callable[[Path], object]) -> Callable[[Drill, Path], str]:
        return partial(damaged_checkpoint, damage=damage)

    return [
        Fault(
            "checkpoint-cut",
            "weights of the newest checkpoint cut",
            newest(lambda p: cut(p / "generator.safetensors")),
        ),
        Fault(
            "checkpoint-flip", "a bit of its optimizer flipped", newest(lambda p: flip(p / "optimizers.pt"))
        ),
        Fault("checkpoint-lacks", "its index missing", newest(lambda p: (p / "files.json").unlink())),
        Fault("checkpoint-empty", "its state emptied", newest(lambda p: (p / "run.json").write_text(""))),
        Fault("disk-full", "the disk fills up", full_disk),
        Fault("disk-read-only", "the run folder is read-only", read_only),
        Fault("two-runs", "a second run in the same folder", two_in_one_folder),
        Fault("torn-logs", "log lines beyond the checkpoint, one cut", torn_logs),
    ]
