"""A scorecard: one setting's scores over seeds, their mean, distributed_map and worst."""

import json
import platform
import statistics
from pathlib import Path
from typing import Any

import torch

from infogan_dist import __version__
from infogan_dist.config.compare import differences, flatten
from infogan_dist.config.schema import Config, Effect
from infogan_dist.errors import DataError
from infogan_dist.runtime.distributed import cores
from infogan_dist.scores.evaluation import words, worse

# What tells nothing of the result, and of the machine too much.
PRIVATE = ("run", "seed", "tracking.", "data.shards", "data.test", "data.disk_cache", "scores.features")

Record = dict[str, Any]  # one seed's scores, as in its file


def record(config: Config, scores: dict[str, Any], seconds: float) -> Record:
    """What is kept of one seed.

    Args:
        scores: the content of its scores.json.
        seconds: that it was trained for, over all its starts.
    """
    return {
        "seed": config.seed,
        "config": public(config),
        "machine": machine(),
        "training_seconds": round(seconds, 1),
        **scores,
    }


def public(config: Config) -> dict[str, Any]:
    """The config as `{"train.steps": ...}`, without what says where files lie."""
    return {k: v for k, v in flatten(config).items() if not k.startswith(PRIVATE)}


def machine() -> dict[str, Any]:
    """On what: processor, cores, GPUs, and the versions that decide speed and rounding."""
    return {
        "processor": platform.machine(),
        "cores": cores(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "infogan_dist": __version__,
    }


def differing(kept: Record, config: Config) -> list[str]:
    """What a kept record's config differs in, as `key: old -> new`; empty: it is this setting's."""
    compared = {Effect.TRAINING, Effect.LENGTH, Effect.SCORES}
    return differences(kept["config"], json.loads(json.dumps(public(config))), compared)


def card(name: str, records: list[Record]) -> dict[str, Any]:
    """The scorecard of a setting, from its seeds' records.

    Returns:
        `seeds`, and `scores` by name with `mean`, `std` (of a sample; null for one seed), `worst` and
        `per_seed` in the order of `seeds`; then what they are scores of, and on what.
    """
    first = records[0]
    scores = {}
    for score in first["scores"]:
        values = [r["scores"][score] for r in records if score in r["scores"]]
        scores[score] = {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "worst": worse(score)(values),
            "per_seed": values,
        }
    seconds = [r["training_seconds"] for r in records]
    return {
        "name": name,
        "seeds": [r["seed"] for r in records],
        "steps": first["step"],
        "scores": scores,
        "protocol": first["protocol"],
        "left_out": first["left_out"],
        "data": first["data"],
        "config": first["config"],
        "version": first["version"],
        "machine": first["machine"],
        "wall_time": {"training_seconds": sum(seconds), "per_seed": seconds},
    }


def markdown(made: dict[str, Any]) -> str:
    """The scorecard as a page: each score's mean, distributed_map, worst and protocol."""
    seeds, machine_of = made["seeds"], made["machine"]
    gpus = ", ".join(machine_of["gpus"]) or "no GPU"
    hours = made["wall_time"]["training_seconds"] / 3600 / len(seeds)
    lines = [
        f"# {made['name']}",
        "",
        f"{len(seeds)} seeds ({', '.join(map(str, seeds))}), {made['steps']:,} steps each, "
        f"{hours:.1f} h of training a seed on {machine_of['cores']} cores, {gpus}; "
        f"infogan_dist {made['version']}, torch {machine_of['torch']}.",
        "",
        "| score | mean | std | worst | by seed | how |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, of in made["scores"].items():
        std = "" if of["std"] is None else f"{of['std']:.4f}"
        each = " ".join(f"{v:.4f}" for v in of["per_seed"])
        how = words({k: v for k, v in made["protocol"][name].items() if k != "interval_95"})
        lines.append(f"| {name} | {of['mean']:.4f} | {std} | {of['worst']:.4f} | {each} | {how} |")
    lines += [f"\nNot computed: {name}, which {reason}." for name, reason in made["left_out"].items()]
    return "\n".join(lines) + "\n"


def load(path: Path) -> Record | None:
    """A kept record, or None where there is none. Raises `DataError` where the file is not one."""
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text())
        if not isinstance(kept["scores"], dict) or not isinstance(kept["config"], dict):
            raise ValueError("scores or config are missing")
        return kept
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a seed's scores ({error}); remove it to score that seed anew") from None
