"""Training and scoring a setting with several seeds, each as a run of its own."""

import json
import logging
import signal
import subprocess
from pathlib import Path
from typing import Any

import torch

from infogan_dist.config.load import read_config
from infogan_dist.config.schema import Config, Effect
from infogan_dist.errors import EXIT_STOPPED, ConfigError
from infogan_dist.files import report_unwritable, write_text
from infogan_dist.launcher import STOP_SIGNALS, launch_command
from infogan_dist.runtime import tracking
from infogan_dist.scores.card import (
    Card,
    Record,
    config_differences,
    format_markdown,
    read_record,
    scorecard,
    seed_record,
)
from infogan_dist.scores.evaluation import REMEDY, SCORES_FILE

logger = logging.getLogger(__name__)


class CommandFailedError(Exception):
    """A command has failed or was stopped; it has printed its own message.

    Attributes:
        status: exit status to end with.
    """

    def __init__(self, status: int):
        super().__init__(f"exit status {status}")
        self.status = status


class CommandRunner:
    """Runs the package's commands one after the other, and forwards a request to stop to the running one.

    Args:
        quiet: run them with `--quiet`.

    Attributes:
        is_stopped: whether a stop was requested.
    """

    def __init__(self, quiet: bool = False):
        self.options = ["--quiet"] if quiet else []
        self.is_stopped = False
        self._process: subprocess.Popen[bytes] | None = None

    def listen_for_stop(self) -> None:
        """Handle stop signals from here on."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._stop)

    def run(self, command: str, *arguments: str) -> None:
        """Run a command on all GPUs of this machine, or on the CPU, and wait for its end.

        Args:
            command: its module, such as `train`.
            arguments: of the command.

        Raises:
            CommandFailedError: a stop was requested, or its exit status is not 0.
        """
        if self.is_stopped:
            raise CommandFailedError(EXIT_STOPPED)
        target = ["-m", f"infogan_dist.{command}", *arguments, *self.options]
        # In a session of its own the command does not receive Ctrl-C directly, but once, from this process.
        self._process = subprocess.Popen(
            launch_command(*target, processes=torch.cuda.device_count()), start_new_session=True
        )
        if self.is_stopped:  # by a signal that arrived while the command was started
            self._terminate()
        status = self._process.wait()
        if self.is_stopped:
            raise CommandFailedError(EXIT_STOPPED)
        if status:
            raise CommandFailedError(status)

    def _stop(self, number: int, frame: Any) -> None:
        self.is_stopped = True
        self._terminate()

    def _terminate(self) -> None:
        # torchrun forwards SIGTERM to its processes, but not every stop signal.
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()


def score_seeds(arguments: list[str], seeds: list[int], out: Path, quiet: bool = False) -> Card:
    """Train and score a setting with each seed; write the scorecard again after each of them.

    Args:
        arguments: YAML files and `key=value` overrides of the setting.
        seeds: the seeds; each has its run in RUN/seed_N.
        out: the scorecard's file, whose name ends in .json. The page and the folder of the records have the
            same name with another ending, or without one.
        quiet: run the commands with `--quiet`.

    Returns:
        The scorecard.

    Raises:
        ConfigError: the config is impossible, or a stored record has another setting.
        DataError: a file is not a record, or cannot be written.
        CommandFailedError: training or scoring has failed, or was stopped.
    """
    runner = CommandRunner(quiet)
    runner.listen_for_stop()
    run = read_config(arguments).run
    records: list[Record] = []
    card: Card = {}
    for i, seed in enumerate(seeds):
        logger.info("seed %d (%d of %d)", seed, i + 1, len(seeds))
        config = read_config([*arguments, f"seed={seed}", f"run={run}/seed_{seed}"])
        path = out.with_suffix("") / f"seed_{seed}.json"
        records.append(score_seed(runner, config, arguments, path))
        card = scorecard(out.stem, records)
        _write(out, json.dumps(card, indent=1) + "\n")
        _write(out.with_suffix(".md"), format_markdown(card))
    return card


def score_seed(runner: CommandRunner, config: Config, arguments: list[str], path: Path) -> Record:
    """Return the record of a seed: the stored one, or a new one for which the seed is trained and scored.

    Args:
        runner: runs the commands.
        config: the config with the seed and the run folder.
        arguments: YAML files and `key=value` overrides of the setting.
        path: the file of the record.

    Returns:
        The record.

    Raises:
        ConfigError, DataError, CommandFailedError: as of `score_seeds`.
    """
    stored = read_record(path)
    if stored is not None and is_up_to_date(stored, config, path):
        return stored
    run = Path(config.run)
    runner.run("train", *arguments, f"seed={config.seed}", f"run={run}")
    runner.run("evaluate", str(run), *(a for a in arguments if a.startswith(("scores.", "data."))))
    record = seed_record(config, json.loads((run / SCORES_FILE).read_text()), training_seconds(run))
    _write(path, json.dumps(record, indent=1) + "\n")
    return record


def is_up_to_date(record: Record, config: Config, path: Path) -> bool:
    """Return whether a stored record has the scores of a config; False where only the run's length differs.

    Args:
        record: the stored record.
        config: the config of the same seed.
        path: the record's file, for the error message.

    Raises:
        ConfigError: the weights at a given step, or the scores of given weights, would differ.
    """
    conflicts = config_differences(record, config, {Effect.TRAINING, Effect.SCORES})
    if conflicts:
        raise ConfigError(
            f"{path}: contains scores of another setting ({'; '.join(conflicts)}); choose another --out"
        )
    return not config_differences(record, config, {Effect.LENGTH})


def training_seconds(run: Path) -> float:
    """Return the duration of a run's training in seconds, over all its starts; each start counts from 0."""
    total = last = 0.0
    for line in (run / tracking.TIMING).read_text().splitlines():
        seconds = json.loads(line).get("seconds", last)
        total += last if seconds < last else 0.0
        last = seconds
    return total + last


def _write(path: Path, text: str) -> None:
    with report_unwritable(path, REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
