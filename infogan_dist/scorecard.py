"""Trains and scores a setting over several seeds.

    python -m infogan_dist.scorecard configs/mnist.yaml seeds=0..4 data.test=shards/mnist-test
    python -m infogan_dist.scorecard configs/mnist.yaml seeds=0,3,7 train.steps=2000 --out results/mnist.json

Each seed is a run in RUN/seed_N, on all GPUs of this machine, or the CPU. Stopped and started again, it goes
on where it was, within a seed too; seeds whose scores are there already are taken over, so a scorecard may
span days. SIGTERM, SIGUSR1 or Ctrl-C: the run of the day saves a checkpoint, and the exit status is 75.

Writes OUT.json with each score's mean, distributed_map, worst and value by seed, the same as a page (OUT.md), and each
seed's scores with their protocol (OUT/seed_N.json).
"""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from infogan_dist.config.load import read_config
from infogan_dist.config.schema import Config
from infogan_dist.console import exit_on_user_error
from infogan_dist.errors import EXIT_STOPPED, ConfigError
from infogan_dist.files import report_unwritable, write_text
from infogan_dist.runtime import tracking
from infogan_dist.scores import card
from infogan_dist.scores.evaluation import FILE

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Children:
    """Command lines run one after the other, which are told when this one is asked to stop."""

    def __init__(self):
        self.process: subprocess.Popen[bytes] | None = None
        self.stopped = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._stop)

    def run(self, module: str, *words: str) -> None:
        """Runs a module's command line on all GPUs to its end; exits with its status where that is not 0."""
        gpus = torch.cuda.device_count()
        several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
        command = [sys.executable, *(several if gpus > 1 else []), "-m", f"infogan_dist.{module}", *words]
        # A session of its own: the keyboard's Ctrl-C reaches it through us alone, and once.
        self.process = subprocess.Popen(command, start_new_session=True)
        status = self.process.wait()
        if self.stopped:
            sys.exit(EXIT_STOPPED)
        if status:
            sys.exit(status)

    def _stop(self, number: int, frame: Any) -> None:
        self.stopped = True
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()  # which launchers pass on, as they do not all other signals


def parse_seeds(text: str) -> list[int]:
    """`0..4` (both ends belong to it) or `0,3,7`. Raises `ConfigError`."""
    first, dots, last = text.partition("..")
    words = [first, last] if dots else text.split(",")
    if not all(w.isdecimal() for w in words) or (dots and int(last) < int(first)):
        raise ConfigError(f"seeds={text}: give a range such as seeds=0..4, or a list such as seeds=0,3,7")
    return list(range(int(first), int(last) + 1)) if dots else list(dict.fromkeys(map(int, words)))


def training_seconds(run: Path) -> float:
    """How long a run was trained for, over all its starts: each counts its seconds from 0."""
    total = last = 0.0
    for line in (run / tracking.TIMING).read_text().splitlines():
        seconds = json.loads(line).get("seconds", last)
        total += last if seconds < last else 0.0
        last = seconds
    return total + last


def score_seed(children: Children, config: Config, arguments: list[str], kept: Path) -> card.Record:
    """A seed's record: the kept one, or that of training and scoring it now. Raises `ConfigError`."""
    found = card.load(kept)
    if found is not None:
        changed = [line for line in card.differing(found, config) if not line.startswith("train.steps:")]
        if changed:
            raise ConfigError(f"{kept}: scores of another setting ({'; '.join(changed)}); give another --out")
        if not card.differing(found, config):
            return found
    run = Path(config.run)
    children.run("train", *arguments, f"seed={config.seed}", f"run={run}")
    own = [word for word in arguments if word.startswith(("scores.", "data."))]
    children.run("evaluate", str(run), *own)
    made = card.record(config, json.loads((run / FILE).read_text()), training_seconds(run))
    _write(kept, json.dumps(made, indent=1) + "\n")
    return made


def _write(path: Path, text: str) -> None:
    with report_unwritable(path, "set --out to another place"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="scorecard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", metavar="CONFIG or key=value", nargs="+", help="as of train, and seeds=")
    parser.add_argument("--out", type=Path, help="the scorecard's file, ending in .json [RUN/scorecard.json]")
    parsed = parser.parse_intermixed_args(argv)
    with exit_on_user_error():
        seeds = [w for w in parsed.words if w.startswith("seeds=")]
        arguments = [w for w in parsed.words if not w.startswith("seeds=")]
        numbers = parse_seeds(seeds[-1].removeprefix("seeds=")) if seeds else [0]
        base = read_config(arguments)
        out = parsed.out or Path(base.run) / "scorecard.json"
        if out.suffix != ".json":
            raise ConfigError(f"--out {out}: the name must end in .json")
        children, records = Children(), []
        for i, seed in enumerate(numbers):
            print(f"seed {seed} ({i + 1} of {len(numbers)})", file=sys.stderr, flush=True)
            config = read_config([*arguments, f"seed={seed}", f"run={base.run}/seed_{seed}"])
            kept = out.with_suffix("") / f"seed_{seed}.json"
            records.append(score_seed(children, config, arguments, kept))
            made = card.card(out.stem, records)
            _write(out, json.dumps(made, indent=1) + "\n")
            _write(out.with_suffix(".md"), card.markdown(made))
        print(card.markdown(made))
        print(f"written: {out}, {out.with_suffix('.md')}, {out.with_suffix('')}/")


if __name__ == "__main__":
    main()
