"""What of a configuration is refused before anything starts, each with one line."""

import dataclasses
import math
from typing import Any

from infogan_dist.config.batch_share import check_batch
from infogan_dist.config.codes import CategoricalConfig, CodeConfig, ContinuousConfig
from infogan_dist.config.schema import EQUIVARIANCES, Config
from infogan_dist.errors import ConfigError


def validate(config: Config) -> None:
    """Refuse what no number of processes could run. Raises `ConfigError`."""
    _check_ranges(config, "")
    if (config.train.steps is None) == (config.train.epochs is None):
        given = "both" if config.train.steps is not None else "neither"
        raise ConfigError(
            f"train.steps, train.epochs: {given} given; give one of them, such as train.steps=20000"
        )
    for name, code in config.codes.items():
        if code is not None:
            _check_code(name, code)
    if not any(config.codes.values()):
        raise ConfigError("codes: none; add one, such as codes.digit={kind: categorical, size: 10}")
    for name in ("generator", "discriminator"):
        if not getattr(config.networks, name):
            raise ConfigError(f"networks.{name}: no layers; start from a preset, such as configs/mnist.yaml")
        adam = getattr(config.optim, name)
        if adam.beta1 >= 1 or adam.beta2 >= 1:
            raise ConfigError(f"optim.{name}: beta1 and beta2 must be below 1")
    if config.train.ema_decay >= 1:
        raise ConfigError(
            f"train.ema_decay: {config.train.ema_decay} must be below 1; 0 takes the last weights"
        )
    _check_clustering(config)
    _check_equivariance(config)
    if config.train.cuda_graph and config.objective.penalty_every > 1:
        raise ConfigError(
            "train.cuda_graph: a recorded step cannot leave out the penalties of objective.penalty_every="
            f"{config.objective.penalty_every}; set one of them to false or 1"
        )
    check_batch(config, world=config.train.processes or 1)


def _check_clustering(config: Config) -> None:
    clustering = config.clustering
    if clustering.steps == 0:
        return
    code = config.codes.get(clustering.code)
    if not isinstance(code, CategoricalConfig) or code.count != 1:
        raise ConfigError(f"clustering.code: {clustering.code} is no categorical code with one variable")
    if not config.networks.classifier:
        raise ConfigError(
            "networks.classifier: no layers; copy those of configs/mnist_best.yaml, or set clustering.steps=0"
        )
    if config.objective.split_updates:
        raise ConfigError("objective.d_updates: split has no categories; use joint, or clustering.steps=0")
    if config.train.steps is not None and config.train.steps < clustering.steps:
        raise ConfigError(
            f"train.steps: {config.train.steps} includes the {clustering.steps} of clustering.steps; set more"
        )
    if clustering.ema_decay >= 1:
        raise ConfigError(f"clustering.ema_decay: {clustering.ema_decay} must be below 1")


def _check_equivariance(config: Config) -> None:
    kinds = config.objective.equivariance
    if not kinds:
        return
    if not config.objective.q_with_discriminator or config.objective.split_updates:
        raise ConfigError(
            "objective.equivariance: needs q_step=discriminator and d_updates=joint; remove it, or set these"
        )
    for variable, kind in kinds.items():
        name, _, index = variable.partition(".")
        code = config.codes.get(name)
        number = int(index) if index.isdecimal() else 0
        if not isinstance(code, ContinuousConfig) or number >= code.size:
            raise ConfigError(f"objective.equivariance.{variable}: no variable of a continuous code")
        if kind not in EQUIVARIANCES:
            raise ConfigError(
                f"objective.equivariance.{variable}: {kind!r} is refused; use {', '.join(EQUIVARIANCES)}"
            )
    if len(set(kinds.values())) < len(kinds):
        raise ConfigError("objective.equivariance: two variables change the same; name each kind once")


def _check_code(name: str, code: CodeConfig) -> None:
    key = f"codes.{name}"
    if not name.isidentifier() or name == "noise":
        raise ConfigError(f"{key}: a code's name is one word of letters, digits and _, and not 'noise'")
    code.check(key)


def _check_ranges(node: Any, prefix: str) -> None:
    for spec in dataclasses.fields(node):
        value, key, metadata = getattr(node, spec.name), prefix + spec.name, spec.metadata
        for item_key, item in _items(key, value):
            if dataclasses.is_dataclass(item):
                _check_ranges(item, item_key + ".")
            elif item is not None and not _is_in_range(item, metadata):
                raise ConfigError(f"{item_key}: {item!r} is refused; {_allowed(metadata)}")


def _items(key: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, list):
        return [(f"{key}[{i}]", v) for i, v in enumerate(value)]
    if isinstance(value, dict):
        return [(f"{key}.{k}", v) for k, v in value.items()]
    return [(key, value)]


def _is_in_range(value: Any, metadata: Any) -> bool:
    if metadata["choices"]:
        return value in metadata["choices"]
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if metadata["minimum"] is not None and value < metadata["minimum"]:
        return False
    return metadata["above"] is None or value > metadata["above"]


def _allowed(metadata: Any) -> str:
    if metadata["choices"]:
        return "use " + ", ".join(metadata["choices"])
    if metadata["minimum"] is not None:
        return f"use a finite number from {metadata['minimum']} up"
    if metadata["above"] is not None:
        return f"use a finite number above {metadata['above']}"
    return "give a finite value"
