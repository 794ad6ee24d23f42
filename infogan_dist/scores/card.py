"""A scorecard: the mean, standard deviation and worst value of one setting's scores over several seeds."""

import json
import platform
import statistics
from pathlib import Path
from typing import Any

import torch

from infogan_dist import __version__
from infogan_dist.config.load import differences, flatten
from infogan_dist.config.schema import Config, Effect
from infogan_dist.errors import DataError
from infogan_dist.runtime.distributed import cores
from infogan_dist.scores.evaluation import format_protocol

# Beginnings of the config keys that records do not contain: they do not determine the result, or describe one
# machine only.
PRIVATE = ("run", "seed", "tracking.", "data.shards", "data.test", "data.disk_cache", "scores.features")
# The scores of which lower values are better, for records of version 0.1.0, which do not list them.
LOWER_IS_BETTER = ("fid", "kid", "fid_of_test_images")

Record = dict[str, Any]  # the scores of one seed, as in its file
Card = dict[str, Any]  # the scorecard, as in its file


def seed_record(config: Config, scores: dict[str, Any], seconds: float) -> Record:
    """Return the record of one seed.

    Args:
        config: the run's config.
        scores: the content of its scores.json.
        seconds: duration of the training, over all its starts.
    """
    return {
        "seed": config.seed,
        "config": public_config(config),
        "machine": machine(),
        "training_seconds": round(seconds, 1),
        **scores,
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
    return differences(record["config"], public_config(config), effects)


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


def scorecard(name: str, records: list[Record]) -> Card:
    """Return the scorecard of a setting.

    Args:
        name: of the setting.
        records: those of its seeds, at least one.

    Returns:
        `seeds`, and `scores` by name with `mean`, `std` (of a sample; null for one seed), `worst` and
        `per_seed` in the order of `seeds`; then what was scored, how and on which machine.
    """
    first = records[0]
    lower_is_better = first["lower_is_better"]
    scores = {}
    for score in first["scores"]:
        values = [r["scores"][score] for r in records if score in r["scores"]]
        scores[score] = {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "worst": max(values) if score in lower_is_better else min(values),
            "per_seed": values,
        }
    seconds = [r["training_seconds"] for r in records]
    return {
        "name": name,
        "seeds": [r["seed"] for r in records],
        "steps": first["step"],
        "scores": scores,
        "lower_is_better": lower_is_better,
        "protocol": first["protocol"],
        "left_out": first["left_out"],
        "data": first["data"],
        "config": first["config"],
        "version": first["version"],
        "machine": first["machine"],
        "wall_time": {"training_seconds": sum(seconds), "per_seed": seconds},
    }


def format_markdown(card: Card) -> str:
    """Return the scorecard as a page: mean, standard deviation, worst value and protocol of each score."""
    seeds, machine_info = card["seeds"], card["machine"]
    gpus = ", ".join(machine_info["gpus"]) or "no GPU"
    hours = card["wall_time"]["training_seconds"] / 3600 / len(seeds)
    lines = [
        f"# {card['name']}",
        "",
        f"{len(seeds)} seeds ({', '.join(map(str, seeds))}), {card['steps']:,} steps each, "
        f"{hours:.1f} h of training a seed on {machine_info['cores']} cores, {gpus}; "
        f"infogan_dist {card['version']}, torch {machine_info['torch']}.",
        "",
        "| score | mean | std | worst | by seed | how |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, score in card["scores"].items():
        std = "" if score["std"] is None else f"{score['std']:.4f}"
        values = " ".join(f"{v:.4f}" for v in score["per_seed"])
        protocol = {k: v for k, v in card["protocol"][name].items() if k != "interval_95"}
        lines.append(
            f"| {name} | {score['mean']:.4f} | {std} | {score['worst']:.4f} | {values} "
            f"| {format_protocol(protocol)} |"
        )
    lines += [f"\nNot computed: {name}, which {reason}." for name, reason in card["left_out"].items()]
    return "\n".join(lines) + "\n"
