"""A scorecard: the mean, standard deviation and worst value of one setting's scores over several seeds."""

import json
import math
import platform
import statistics
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student

from infogan_dist import __version__
from infogan_dist.config.codes import CodeConfig
from infogan_dist.config.load import differences, flatten
from infogan_dist.config.schema import Config, Effect
from infogan_dist.errors import ConfigError, DataError
from infogan_dist.runtime.device import cores

# Beginnings of the config keys that records do not contain: they do not determine the result, or describe one
# machine only.
PRIVATE = ("run", "seed", "tracking.", "data.shards", "data.test", "data.disk_cache", "scores.features")
PRIVATE_ENTRIES = ("command",)  # entries of scores.json that records do not contain for the same reason
# The scores of which lower values are better, for records of version 0.1.0, which do not list them.
LOWER_IS_BETTER = ("fid", "kid", "fid_of_test_images")

Record = dict[str, Any]  # the scores of one seed, as in its file
Card = dict[str, Any]  # the scorecard, as in its file


def seed_record(config: Config, scores: dict[str, Any], seconds: float | None) -> Record:
    """Return the record of one seed.

    Args:
        config: the run's config.
        scores: the content of its scores.json.
        seconds: duration of the training, over all its starts; None if it is unknown.
    """
    return {
        "seed": config.seed,
        "config": public_config(config),
        "machine": machine(),
        "training_seconds": None if seconds is None else round(seconds, 1),
        **{key: value for key, value in scores.items() if key not in PRIVATE_ENTRIES},
    }


def public_config(config: Config) -> dict[str, Any]:
    """Return the config as `{"train.steps": ...}`, as it is in a record, without the `PRIVATE` keys."""
    public = {k: v for k, v in flatten(config).items() if not k.startswith(PRIVATE)}
    return json.loads(json.dumps(public))


def machine() -> dict[str, Any]:
    """Return the processor, its cores, the GPUs, and the versions that determine speed and rounding."""
    return {
        "processor": platform.machine(),
        "cores": cores(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "infogan_dist": __version__,
    }


def config_differences(record: Record, config: Config, effects: set[Effect]) -> list[str]:
    """Return the differences between a record's config and a config.

    Args:
        record: a stored record.
        config: the config to compare it with.
        effects: only keys with one of these effects are compared.

    Returns:
        One line `key: old -> new` per difference.
    """
    # A record of an earlier version lacks keys that were added later; it was created with their defaults.
    codes = {key.split(".")[1] for key in record["config"] if key.startswith("codes.")}
    defaults = {f"codes.{name}.{spec.name}": spec.default for name in codes for spec in fields(CodeConfig)}
    stored = {**public_config(Config()), **defaults, **record["config"]}
    return differences(stored, public_config(config), effects)


def read_record(path: Path) -> Record | None:
    """Return a stored record, or None where there is none. Raises `DataError` for a file without a record."""
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        if not isinstance(record["scores"], dict) or not isinstance(record["config"], dict):
            raise ValueError("scores or config are missing")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a seed's scores ({error}); remove it to score that seed again"
        ) from None
    if "lower_is_better" not in record:
        record["lower_is_better"] = [name for name in record["scores"] if name in LOWER_IS_BETTER]
    return record


def features_of(record: Record) -> str | None:
    """Return the network that computed the features of a record, `NAME, FINGERPRINT`, or None without one."""
    protocols = record.get("protocol", {}).values()
    return next((protocol["features"] for protocol in protocols if "features" in protocol), None)


def refuse_mixed_data(records: list[Record]) -> None:
    """Refuse records that cannot be averaged. Raises `ConfigError` with two seeds and what differs.

    They differ in the images that the models were trained on or scored with, in the network of the features,
    or in the number of steps.
    """
    first: dict[str, tuple[int, str]] = {}
    for record in records:
        for name, value in _origin(record):
            seed, other = first.setdefault(name, (record["seed"], value))
            if value != other:
                raise ConfigError(
                    f"scorecard: seeds {seed} and {record['seed']} have different {name} ({other}, {value}); "
                    "choose another --out for one of them"
                )


def _origin(record: Record) -> Iterator[tuple[str, str]]:
    """Yield what must be the same in all records of a card, with its name, as far as a record contains it."""
    sets = {"training images": record.get("trained_on")}
    sets |= {f"{split} images of the scores": data for split, data in record.get("data", {}).items()}
    for name, data in sets.items():
        if data is not None:
            yield name, f"{data['name']} {data['fingerprint'][:12]}"
    features = features_of(record)
    if features is not None:
        yield "features", features.rpartition(" ")[2]  # the network's file may have been renamed
    if "step" in record:
        yield "numbers of steps", f"{record['step']:,}"


def mixed_origin(records: list[Record]) -> dict[str, dict[str, list[int]]]:
    """Return the versions and properties of machines that are not the same in all records.

    Returns:
        By name, such as `version` or `machine.cores`, the seeds of each value.
    """
    table: dict[str, dict[str, list[int]]] = {}
    for record in records:
        machine_info = {f"machine.{k}": v for k, v in record["machine"].items() if k != "infogan_dist"}
        for name, value in {"version": record["version"], **machine_info}.items():
            text = ", ".join(value) or "none" if isinstance(value, list) else str(value)
            table.setdefault(name, {}).setdefault(text, []).append(record["seed"])
    return {name: seeds for name, seeds in table.items() if len(seeds) > 1}


def scorecard(name: str, records: list[Record]) -> Card:
    """Return the scorecard of a setting.

    Args:
        name: of the setting.
        records: those of its seeds, at least one.

    Returns:
        `seeds`, and `scores` by name with `mean`, `std` (of a sample; null for one seed), `interval_95` (of
        the mean; null for one seed), `worst` and `per_seed` in the order of `seeds` (null where a seed lacks
        the score); then what was scored, how and on which machine, and `mixed`, as of `mixed_origin`.

    Raises:
        ConfigError: the records have different data, features or numbers of steps.
    """
    refuse_mixed_data(records)
    first = records[0]
    names = list(dict.fromkeys(score for record in records for score in record["scores"]))
    lower_is_better = [n for n in names if any(n in record["lower_is_better"] for record in records)]
    seconds = [record["training_seconds"] for record in records]
    known = [s for s in seconds if s is not None]
    return {
        "name": name,
        "seeds": [record["seed"] for record in records],
        "steps": first["step"],
        "scores": {
            n: _statistics([record["scores"].get(n) for record in records], n in lower_is_better)
            for n in names
        },
        "lower_is_better": lower_is_better,
        "protocol": {n: next(r["protocol"][n] for r in records if n in r["protocol"]) for n in names},
        "left_out": _left_out(records),
        "data": max((record["data"] for record in records), key=len),
        "config": first["config"],
        "version": first["version"],
        "machine": first["machine"],
        "mixed": mixed_origin(records),
        "wall_time": {"training_seconds": sum(known) if known else None, "per_seed": seconds},
    }


def _statistics(per_seed: list[float | None], is_lower_better: bool) -> dict[str, Any]:
    """Return the statistics of one score over the seeds that have it."""
    values = [value for value in per_seed if value is not None]
    mean, std, interval = statistics.fmean(values), None, None
    if len(values) > 1:
        std = statistics.stdev(values)
        half = float(student.ppf(0.975, len(values) - 1)) * std / math.sqrt(len(values))
        interval = [mean - half, mean + half]
    return {
        "mean": mean,
        "std": std,
        "interval_95": interval,
        "worst": max(values) if is_lower_better else min(values),
        "per_seed": per_seed,
    }


def _left_out(records: list[Record]) -> dict[str, str]:
    """Return why scores are missing, with the seeds unless they are missing in all records."""
    result: dict[str, str] = {}
    for name in dict.fromkeys(name for record in records for name in record["left_out"]):
        without = [record for record in records if name in record["left_out"]]
        seeds = ", ".join(str(record["seed"]) for record in without)
        suffix = f" (seeds {seeds})" if len(without) < len(records) else ""
        result[name] = without[0]["left_out"][name] + suffix
    return result
