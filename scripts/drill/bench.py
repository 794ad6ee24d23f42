"""Runs in processes of their own, what they have seen, and how they compare with an undisturbed one."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from infogan_dist.data.sources import Source
from infogan_dist.data.write import write_shard_set

TRAINEE = Path(__file__).with_name("trainee.py")

STEPS, LOG_EVERY, SAVE_EVERY, IMAGES = 240, 5, 30, 240
CONFIG = f"""
noise: 6
codes:
  digit: {{kind: categorical, size: 10}}
  style: {{kind: uniform, size: 2, weight: 0.1}}
networks:
  generator: [{{kind: dense, out: 8, grid: true, then: [relu]}}, {{kind: deconv, stride: 2, then: [tanh]}}]
  discriminator: [{{kind: conv, out: 8, stride: 2, then: [lrelu]}}]
  recognition: [{{kind: dense, out: 16, then: [lrelu]}}]
  init_std: 0.1
train: {{steps: {STEPS}, batch_size: 32, log_every: {LOG_EVERY}}}
checkpoint: {{every: {SAVE_EVERY}, keep: 3}}
tracking: {{trackers: [], progress: false, pictures_every: 100000}}
data: {{cache_mib: 0}}
"""
Sample = tuple[int, int]  # a step, and an image's number


class NotSurvived(Exception):  # noqa: N818 - it is the drill's verdict, not a program's error
    """The fault was not survived as promised."""


@dataclass
class Result:
    """What became of a fault."""

    fault: str
    done: str
    seen: str = ""
    survived: bool = False
    weights: str = "not compared"
    samples_lost: int = 0
    samples_doubled: int = 0
    seconds: float = 0.0


@dataclass
class Running:
    """A started command line and its run folder."""

    process: subprocess.Popen[str]
    run: Path

    def end(self, timeout: float = 120) -> tuple[int, str]:
        """Waits for its end; its exit status and what it said."""
        said, _ = self.process.communicate(timeout=timeout)
        return self.process.returncode, said

    def reach(self, step: int, timeout: float = 60) -> None:
        """Waits until it has logged a step."""
        deadline = time.monotonic() + timeout
        path = self.run / "metrics.jsonl"
        while not (path.exists() and path.read_text().count("\n") >= step // LOG_EVERY):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise NotSurvived(f"step {step} was not reached: {self.end()[1][-300:]}")
            time.sleep(0.005)

    def workers(self) -> list[int]:
        """The training processes below a launcher, in the order of their ranks."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                pairs = (p.partition(b"=") for p in (entry / "environ").read_bytes().split(b"\0"))
                env = {name: value for name, _, value in pairs}
            except (OSError, ValueError):
                continue
            if parent == self.process.pid and str(TRAINEE).encode() in words:
                found.append((int(env.get(b"RANK", b"0")), int(entry.name)))
        return [pid for _, pid in sorted(found)]


@dataclass
class Drill:
    """A folder with images and undisturbed runs to compare with.

    Attributes:
        references: by their number of processes.
        peers: of runs that have an undisturbed one of their own, as those on fewer cores must.
    """

    folder: Path
    references: dict[int, Path] = field(default_factory=dict)
    peers: dict[Path, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "config.yaml").write_text(CONFIG)
        pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 1, 8, 8), np.uint8)
        pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = np.arange(IMAGES) // 256, np.arange(IMAGES) % 256
        write_shard_set(
            Source("numbered", IMAGES, [], lambda i: (pixels[i], -1)), self.folder / "set", shards=8
        )

    def start(
        self,
        run: Path,
        *overrides: str,
        processes: int = 1,
        restarts: int = 0,
        poison: int = -1,
        env: dict[str, str] | None = None,
    ) -> Running:
        """Starts (or starts again) a run; several processes under torchrun."""
        audit = run.with_name(run.name + ".audit")
        audit.mkdir(parents=True, exist_ok=True)
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--nnodes=1", "--rdzv-backend=c10d"]
            launcher += ["--rdzv-endpoint=127.0.0.1:0", f"--nproc-per-node={processes}"]
            launcher += [f"--max-restarts={restarts}", "--monitor-interval=0.1"]
        shards = (
            ()
            if any(o.startswith("data.shards=") for o in overrides)
            else (f"data.shards={self.folder}/set",)
        )
        words = [str(self.folder / "config.yaml"), f"run={run}", *shards, *overrides]
        command = [*launcher, str(TRAINEE), str(audit), str(poison), *words]
        # Without the first, restarted workers look for the store of those that died.
        settings = {
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            command,
            env={**os.environ, **settings, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return Running(process, run)

    def finish(
        self, run: Path, *overrides: str, processes: int = 1, env: dict[str, str] | None = None
    ) -> str:
        """Starts a run and waits until it is done."""
        status, said = self.start(run, *overrides, processes=processes, env=env).end()
        if status:
            raise NotSurvived(f"exit status {status}: {said[-400:]}")
        return said

    def refused(self, running: Running, *words: str, status: int | None = 2) -> str:
        """Waits for an end with a clear line that holds some words; returns it."""
        code, said = running.end()
        lines = [line for line in said.splitlines() if all(w in line for w in words)]
        if (
            code == 0
            or (status is not None and code != status)
            or not lines
            or "Traceback" in said.split(lines[0])[0]
        ):
            raise NotSurvived(f"exit status {code} without a line on {', '.join(words)}: {said[-400:]}")
        return lines[0].replace(str(self.folder), "...")[:160]

    def reference(self, processes: int) -> Path:
        """An undisturbed run on so many processes."""
        if processes not in self.references:
            run = self.folder / f"undisturbed{processes}"
            self.finish(run, processes=processes)
            self.references[processes] = run
        return self.references[processes]


@dataclass(frozen=True)
class Fault:
    """A fault: its name, what is done, on how many processes, and whether the weights must be identical."""

    name: str
    done: str
    inflict: Callable[[Drill, Path], str]
    processes: int = 1
    identical: bool = True


def seen_by(run: Path) -> dict[tuple[int, int], list[int]]:
    """What a run has learned from: image numbers by (step, lane), from the last process that did it."""
    seen: dict[tuple[int, int], list[int]] = {}
    for file in sorted(run.with_name(run.name + ".audit").iterdir()):
        for line in file.read_text().splitlines():
            try:
                step, lane, numbers = json.loads(line)
            except ValueError:
                continue  # cut by a kill: the step was not done
            if step < STEPS:
                seen[step, lane] = numbers
    return seen


def weights(run: Path) -> dict[str, np.ndarray]:
    folder = run / "checkpoints" / f"step_{STEPS:08d}"
    return {f"{f.stem}.{k}": v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}


def compare(drill: Drill, result: Result, run: Path, processes: int) -> None:
    """Fills in what a fault did to the weights and to the images seen, against the undisturbed run."""
    reference = drill.peers.get(run) or drill.reference(processes)
    seen, expected = seen_by(run), seen_by(reference)
    for key, numbers in expected.items():
        missing, extra = Counter(numbers), Counter(seen.get(key, []))
        reported = extra.pop(-1, 0)  # broken images whose place was taken: said and counted
        result.samples_lost += max(0, (missing - extra).total() - reported)
        result.samples_doubled += (extra - missing).total()
    ours, theirs = weights(run), weights(reference)
    equal = ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)
    result.weights = "identical" if equal else "different"
