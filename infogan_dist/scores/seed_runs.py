"""Training and scoring a setting with several seeds, each as a run of its own."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from infogan_dist.config.load import CONFIG_FILE, flatten, load_config, read_config
from infogan_dist.config.schema import Config, Effect
from infogan_dist.data.shards import Manifest, load_manifest
from infogan_dist.errors import ConfigError
from infogan_dist.runtime import checkpoint, run_logs
from infogan_dist.runtime.device import resolve_config
from infogan_dist.runtime.run_folder import RunFolder
from infogan_dist.scores.card import (
    Card,
    Record,
    config_differences,
    features_of,
    read_record,
    scorecard,
    seed_record,
)
from infogan_dist.scores.command_runner import CommandRunner
from infogan_dist.scores.features import features_fingerprint
from infogan_dist.scores.output import SCORES_FILE, prepare_output, write_output
from infogan_dist.scores.page import format_markdown
from infogan_dist.scores.requirements import check_scores
from infogan_dist.scores.score import FAILED

SCORED_KEYS = ("scores.", "data.")  # beginnings of the keys that scoring a trained model depends on
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredData:
    """The images and the network of the features that a config names now.

    Attributes:
        train: the training images.
        test: held-out images, or None.
        features: SHA-256 of the network's file, or None if there is none.
    """

    train: Manifest
    test: Manifest | None
    features: str | None

    def conflicts(self, record: Record) -> list[str]:
        """Return which of a record's images and networks are other ones now, one line for each."""
        train = self.train.fingerprint()
        pairs = [("training images", record.get("trained_on"), train)]
        pairs.append(("data.shards", record.get("data", {}).get("train"), train))
        if self.test is not None:
            pairs.append(("data.test", record.get("data", {}).get("test"), self.test.fingerprint()))
        lines = [
            f"{name}: {stored['fingerprint'][:12]} -> {now[:12]}"
            for name, stored, now in pairs
            if stored is not None and stored["fingerprint"] != now
        ]
        used = features_of(record)
        if used is not None and self.features is not None:
            before, now = used.rpartition(" ")[2], self.features[:12]
            lines += [f"scores.features: {before} -> {now}"] if before != now else []
        return lines


def load_data(config: Config) -> ScoredData:
    """Return the data of a config. Raises `DataError` if a manifest cannot be read."""
    test = None if config.data.test is None else load_manifest(config.data.test)
    return ScoredData(load_manifest(config.data.shards), test, features_fingerprint(config.scores.features))


def score_seeds(arguments: list[str], seeds: list[int], out: Path, quiet: bool = False) -> Card:
    """Train and score a setting with each seed; write the scorecard again after each of them.

    The scorecard covers all stored records of the setting, also of seeds that are not named.

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
    config, folder = read_config(arguments), out.with_suffix("")
    data = load_data(config)
    check_scores(config, data.train, data.test)
    for path in (out, folder / "seed_0.json"):
        prepare_output(path)
    stored_records(folder, config, data)  # refuses records of another setting before anything is trained
    card: Card = {}
    for i, seed in enumerate(seeds):
        logger.info("seed %d (%d of %d)", seed, i + 1, len(seeds))
        seed_config = read_config([*arguments, f"seed={seed}", f"run={config.run}/seed_{seed}"])
        score_seed(runner, seed_config, arguments, folder / f"seed_{seed}.json", data)
        card = scorecard(out.stem, stored_records(folder, config, data))
        write_output(out, json.dumps(card, indent=1) + "\n")
        write_output(out.with_suffix(".md"), format_markdown(card))
    for path in _record_paths(folder):
        if int(path.stem.removeprefix("seed_")) not in card["seeds"]:
            logger.warning("%s: has another length, so that it is not in the scorecard", path)
    for name, values in card["mixed"].items():
        text = ", ".join(f"{v} (seeds {', '.join(map(str, s))})" for v, s in values.items())
        logger.warning("%s: %s is not the same for all seeds: %s", out, name, text)
    return card


def stored_records(folder: Path, config: Config, data: ScoredData | None = None) -> list[Record]:
    """Return the stored records of a setting by seed, without those of another length.

    Args:
        folder: with the records.
        config: the config of the setting, with any seed.
        data: the data that the config names now; None: not compared.

    Raises:
        ConfigError: a record has another setting.
        DataError: a file is not a record.
    """
    records = []
    steps = None if data is None else config.length(data.train.samples)
    for path in _record_paths(folder):
        record = read_record(path)
        if record is None or not is_up_to_date(record, config, path, data):
            continue
        if steps is None or record["step"] == steps:
            records.append(record)
    return sorted(records, key=lambda record: record["seed"])


def _record_paths(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("seed_*.json") if p.stem.removeprefix("seed_").isdecimal())


def score_seed(
    runner: CommandRunner,
    config: Config,
    arguments: list[str],
    path: Path,
    data: ScoredData | None = None,
) -> Record:
    """Return the record of a seed: the stored one, or a new one for which the seed is trained and scored.

    A stored record that lacks scores which can be computed now is scored again without training.

    Args:
        runner: runs the commands.
        config: the config with the seed and the run folder.
        arguments: YAML files and `key=value` overrides of the setting.
        path: the file of the record.
        data: the data that the config names now; None: not compared.

    Returns:
        The record.

    Raises:
        ConfigError, DataError, CommandFailedError: as of `score_seeds`; also if the run folder was trained
            for more steps already, and has no checkpoint of the config's length.
    """
    stored = read_record(path)
    is_trained = stored is not None and is_up_to_date(stored, config, path, data)
    if stored is not None and is_trained and not lacks_scores(stored, config, data):
        return stored
    run = Path(config.run)
    step = _trained_step(run, config, data, is_trained)
    if step is None:
        runner.run("train", *arguments, f"seed={config.seed}", f"run={run}")
    runner.run("evaluate", str(run), *_evaluation_words(run, config, arguments, step))
    record = seed_record(config, json.loads((run / SCORES_FILE).read_text()), training_seconds(run))
    write_output(path, json.dumps(record, indent=1) + "\n")
    return record


def is_up_to_date(record: Record, config: Config, path: Path, data: ScoredData | None = None) -> bool:
    """Return whether a stored record has the scores of a config; False where only the run's length differs.

    Args:
        record: the stored record.
        config: the config of the same seed.
        path: the record's file, for the error message.
        data: the data that the config names now; None: not compared.

    Raises:
        ConfigError: the weights at a given step, or the scores of given weights, would differ.
    """
    conflicts = config_differences(record, config, {Effect.TRAINING, Effect.SCORES})
    conflicts += data.conflicts(record) if data is not None else []
    if conflicts:
        raise ConfigError(
            f"{path}: contains scores of another setting ({'; '.join(conflicts)}); choose another --out"
        )
    return not config_differences(record, config, {Effect.LENGTH})


def lacks_scores(record: Record, config: Config, data: ScoredData | None) -> bool:
    """Return whether scores are missing in a record that can be computed now, or are those of another step.

    Args:
        record: a stored record of the config's setting.
        config: the config.
        data: the data that the config names now; None: unknown.
    """
    left_out = record.get("left_out", {})
    if any(reason.startswith(FAILED) for reason in left_out.values()):
        return True
    if config.scores.features is not None and "fidelity" in left_out:
        return True
    if data is None:
        return False
    has_other_step = record.get("step") != config.length(data.train.samples)
    return has_other_step or (data.test is not None and "test" not in record.get("data", {}))


def _trained_step(run: Path, config: Config, data: ScoredData | None, is_trained: bool) -> int | None:
    """Return the step of an existing checkpoint to score, or None if the run has to be trained first.

    Args:
        run: the run folder.
        config: the run's config.
        data: the data that the config names now; None: unknown.
        is_trained: whether the run was trained to its end before.

    Raises:
        ConfigError: the folder has only checkpoints of later steps, or is the run of another config.
    """
    if data is None:
        return None
    newest, length = checkpoint.find(run), config.length(data.train.samples)
    if newest is None or newest.step < length or (newest.step == length and not is_trained):
        return None
    RunFolder(run).resume_point(resolve_config(config), data.train)  # refuses the run of another config
    if checkpoint.find(run, length) is None:
        raise ConfigError(
            f"{run}: was trained for {newest.step:,} steps already and has no checkpoint of step {length:,}; "
            f"set train.steps={newest.step}, or choose another folder with run=FOLDER"
        )
    return length


def _evaluation_words(run: Path, config: Config, arguments: list[str], step: int | None) -> list[str]:
    """Return the arguments of the command that scores a run, apart from its folder.

    A checkpoint contains the config that it was trained with. Where the scores' part of the config is another
    one by now, it is passed.
    """
    words = [argument for argument in arguments if argument.startswith(SCORED_KEYS)]
    saved = checkpoint.find(run, step)
    if saved is not None:
        trained = flatten(load_config(saved.path / CONFIG_FILE, words))
        words += [
            f"{key}={json.dumps(value)}"
            for key, value in flatten(config).items()
            if key.startswith(SCORED_KEYS) and trained.get(key) != value
        ]
    return words if step is None else [*words, f"step={step}"]


def training_seconds(run: Path) -> float | None:
    """Return the duration of a run's training in seconds, over all its starts; each start counts from 0.

    None where the run has logged nothing, because it is shorter than `train.log_every`.
    """
    path = run / run_logs.TIMING
    if not path.is_file():
        return None
    total = last = 0.0
    for line in path.read_text().splitlines():
        seconds = json.loads(line).get("seconds", last)
        total += last if seconds < last else 0.0
        last = seconds
    return total + last
