"""Training runs in separate processes, and their comparison with undisturbed runs."""

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from infogan_dist.creation.source import Source
from infogan_dist.creation.write import write_shard_set
from infogan_dist.launcher import launch_command

TRAINEE = Path(__file__).with_name("trainee.py")

STEPS, BATCH_SIZE, LOG_EVERY, SAVE_EVERY, IMAGES = 240, 32, 5, 30, 240
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
train: {{steps: {STEPS}, batch_size: {BATCH_SIZE}, log_every: {LOG_EVERY}}}
checkpoint: {{every: {SAVE_EVERY}, keep: 3}}
tracking: {{trackers: [], progress: false, pictures_every: 100000}}
data: {{cache_mib: 0}}
"""
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    # Without this, workers that torchrun restarts wait for the store of the workers that died.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
LINE_LENGTH = 160  # characters of a message in the report


class DrillError(Exception):
    """A run did not survive a fault as promised."""


@dataclass
class Result:
    """The outcome of a fault.

    Attributes:
        fault: name of the fault.
        description: what was done to the run.
        observation: what the run printed or did.
        survived: whether the run ended as promised.
        weights: "identical" to those of the undisturbed run, "different" or "not compared".
        samples_lost, samples_doubled: images that the run used too rarely or too often.
        seconds: duration, with all runs that were started.
    """

    fault: str
    description: str
    observation: str = ""
    survived: bool = False
    weights: str = "not compared"
    samples_lost: int = 0
    samples_doubled: int = 0
    seconds: float = 0.0


@dataclass
class StartedRun:
    """A command line that is running, and its run folder."""

    process: subprocess.Popen[str]
    folder: Path

    def wait(self, timeout: float = 120) -> tuple[int, str]:
        """Wait for the end; return the exit status and the output."""
        output, _ = self.process.communicate(timeout=timeout)
        return self.process.returncode, output

    def wait_for_success(self) -> str:
        """Wait for the end and return the output. Raises `DrillError` for an exit status other than 0."""
        status, output = self.wait()
        if status:
            raise DrillError(f"exit status {status}: {output[-400:]}")
        return output

    def wait_for_step(self, step: int, timeout: float = 60) -> None:
        """Wait until a step has been logged. Raises `DrillError` if the run ends before, or is too slow."""
        deadline = time.monotonic() + timeout
        path = self.folder / "metrics.jsonl"
        while not (path.exists() and path.read_text().count("\n") >= step // LOG_EVERY):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise DrillError(f"step {step} was not reached: {self.wait()[1][-300:]}")
            time.sleep(0.005)

    def worker_pids(self) -> list[int]:
        """Return the process ids of the training processes below a launcher, in the order of their ranks."""
        workers = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                pairs = (p.partition(b"=") for p in (entry / "environ").read_bytes().split(b"\0"))
                env = {name: value for name, _, value in pairs}
            except (OSError, ValueError):
                continue
            if parent == self.process.pid and str(TRAINEE).encode() in words:
                workers.append((int(env.get(b"RANK", b"0")), int(entry.name)))
        return [pid for _, pid in sorted(workers)]


@dataclass
class Drill:
    """A folder with a shard set, the runs that meet faults, and undisturbed runs to compare them with.

    Attributes:
        folder: contains everything.
        references: undisturbed runs by their number of processes.
        peers: undisturbed runs by the folder of the only run that is compared with them.
    """

    folder: Path
    references: dict[int, Path] = field(default_factory=dict)
    peers: dict[Path, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "config.yaml").write_text(CONFIG)
        pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 1, 8, 8), np.uint8)
        # The first two pixels contain the number of the image, by which trainee.py recognises it.
        pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = np.arange(IMAGES) // 256, np.arange(IMAGES) % 256
        write_shard_set(
            Source("numbered", IMAGES, [], lambda i: (pixels[i], -1)), self.folder / "set", shards=8
        )

    def start(
        self,
        run: Path,
        *overrides: str,
        processes: int = 1,
        poison: int = -1,
        env: dict[str, str] | None = None,
    ) -> StartedRun:
        """Start a run, or start it again.

        Args:
            run: the run folder.
            overrides: `key=value`; without `data.shards` the run reads the drill's own shard set.
            processes: more than one are started by torchrun.
            poison: a step whose images contain a NaN; -1: none.
            env: more environment variables.
        """
        audit = audit_folder(run)
        audit.mkdir(parents=True, exist_ok=True)
        words = [str(self.folder / "config.yaml"), f"run={run}", f"data.shards={self.folder}/set", *overrides]
        command = launch_command(str(TRAINEE), str(audit), str(poison), *words, processes=processes)
        process = subprocess.Popen(
            command,
            env={**os.environ, **ENVIRONMENT, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return StartedRun(process, run)

    def complete(
        self, run: Path, *overrides: str, processes: int = 1, env: dict[str, str] | None = None
    ) -> str:
        """Start a run, wait until it is complete and return its output; arguments as of `start`.

        Raises:
            DrillError: it ended with an exit status other than 0.
        """
        return self.start(run, *overrides, processes=processes, env=env).wait_for_success()

    def expect_error(self, started: StartedRun, *words: str, status: int | None = 2) -> str:
        """Wait for a run that ends with an error message, and return the message.

        Args:
            started: the run.
            words: all of them must occur in the message, which must not come after a traceback.
            status: the exit status; None: any but 0, as torchrun ends with its own.

        Raises:
            DrillError: the run ended in another way.
        """
        code, output = started.wait()
        lines = [line for line in output.splitlines() if all(w in line for w in words)]
        if (
            code == 0
            or (status is not None and code != status)
            or not lines
            or "Traceback" in output.split(lines[0])[0]
        ):
            raise DrillError(f"exit status {code} without a line on {', '.join(words)}: {output[-400:]}")
        return self.shorten(lines[0].removeprefix("error: "))

    def resume_message(self, output: str) -> str:
        """Return the line in which a run names the checkpoint that it continues from.

        Raises:
            DrillError: there is none; the run started from its first step.
        """
        for line in output.splitlines():
            if "continuing from" in line:
                return self.shorten(line)
        raise DrillError(f"continued from no checkpoint: {output[-400:]}")

    def shorten(self, line: str) -> str:
        """Return a line for the report, without the path of the drill's folder."""
        return line.replace(str(self.folder), "...")[:LINE_LENGTH].rstrip()

    def reference(self, processes: int) -> Path:
        """Return an undisturbed run on this number of processes; the first call trains it."""
        if processes not in self.references:
            run = self.folder / f"undisturbed{processes}"
            self.complete(run, processes=processes)
            self.references[processes] = run
        return self.references[processes]


@dataclass(frozen=True)
class Fault:
    """A fault that a run meets.

    Attributes:
        name: by which `--only` selects it.
        description: what is done to the run.
        inflict: does it to a run folder of a drill, completes the run and returns an observation.
        processes: number of processes of the run.
        identical: whether the weights must be those of the undisturbed run.
    """

    name: str
    description: str
    inflict: Callable[[Drill, Path], str]
    processes: int = 1
    identical: bool = True


def audit_folder(run: Path) -> Path:
    """Return the folder in which trainee.py records the images of a run."""
    return run.with_name(run.name + ".audit")


def images_by_step(run: Path) -> dict[tuple[int, int], list[int]]:
    """Return the numbers of the images that a run used, by (step, lane).

    Of a step that was done several times, the images of the last process that did it count, since the work of
    the others is not part of the final weights.
    """
    images: dict[tuple[int, int], list[int]] = {}
    for file in sorted(audit_folder(run).iterdir()):
        for line in file.read_text().splitlines():
            try:
                step, lane, numbers = json.loads(line)
            except ValueError:
                continue  # cut by a kill, before the step was done
            if step < STEPS:
                images[step, lane] = numbers
    return images


def final_weights(run: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a run's last checkpoint."""
    folder = run / "checkpoints" / f"step_{STEPS:08d}"
    return {f"{f.stem}.{k}": v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}


def compare(drill: Drill, result: Result, run: Path, processes: int) -> None:
    """Compare the images and the weights of a run with those of the undisturbed run.

    Args:
        drill: contains both runs.
        result: its fields `weights`, `samples_lost` and `samples_doubled` are set.
        run: the run folder.
        processes: number of processes of the undisturbed run.
    """
    reference = drill.peers.get(run) or drill.reference(processes)
    images, expected = images_by_step(run), images_by_step(reference)
    for key, numbers in expected.items():
        missing, extra = Counter(numbers), Counter(images.get(key, []))
        substituted = extra.pop(-1, 0)  # reported by the run, so not lost
        result.samples_lost += max(0, (missing - extra).total() - substituted)
        result.samples_doubled += (extra - missing).total()
    actual, wanted = final_weights(run), final_weights(reference)
    equal = actual.keys() == wanted.keys() and all(np.array_equal(actual[k], wanted[k]) for k in actual)
    result.weights = "identical" if equal else "different"
