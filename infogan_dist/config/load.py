"""Reading, writing and comparing configs: the only place that decides which keys a resumed run may change."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from infogan_dist.config.codes import CODE_CONFIGS, CodeConfig
from infogan_dist.config.fields import Effect, schema_keys
from infogan_dist.config.help import unknown_key_message
from infogan_dist.config.overrides import normalised, parse_override, redacted, yaml_problem
from infogan_dist.config.schema import Config
from infogan_dist.config.validate import validate
from infogan_dist.credentials import redact_argument, redact_text, redact_url
from infogan_dist.errors import ConfigError
from infogan_dist.files import write_text

PACKAGE = Path(__file__).parents[1]
CONFIG_FILE = "config.yaml"  # name of a resolved config in a run folder and in a checkpoint
Flat = dict[str, Any]  # {"train.steps": 20000, ...}, the form of overrides; lists stay lists


def read_config(arguments: list[str]) -> Config:
    """Merge YAML files, later ones win, then `key=value` overrides, and check the result.

    Args:
        arguments: paths (`configs/mnist.yaml`; presets are part of an installed package) and overrides
            (`train.steps=20000`, `codes.style=null`, `tracking.trackers=[wandb,tensorboard]`).

    Raises:
        ConfigError: a missing file, an unknown key, a wrong type or an impossible value.
    """
    return _merged(read_trees(arguments))


def read_trees(arguments: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield each argument of `read_config` and its values as a tree, in the order of merging."""
    for name in (a for a in arguments if _is_file(a)):
        yield name, _read_yaml(name)
    for override in (a for a in arguments if not _is_file(a)):
        yield override, parse_override(override)


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a resolved config back from a run folder, with `key=value` overrides. Raises `ConfigError`."""
    saved = (str(path), _read_yaml(str(path)))
    return _merged([saved, *((override, parse_override(override)) for override in overrides)])


def save_config(config: Config, path: Path) -> None:
    """Write the resolved config atomically; only the user may read it if it contains credentials."""
    text = OmegaConf.to_yaml(OmegaConf.structured(config))
    write_text(path, text, private=redact_text(text) != text)


def flatten(config: Config) -> Flat:
    """Return the config as `{"train.steps": 20000, ...}`."""
    return flatten_tree(dataclasses.asdict(config))


def flatten_tree(tree: Mapping[str, Any], prefix: str = "") -> Flat:
    """Return the values of nested mappings by their whole key, as of `flatten`."""
    flat: Flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten_tree(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def resume_conflicts(old: Config, new: Config) -> list[str]:
    """Return what differs in keys that a resumed run may not change, as `key: old -> new`.

    It may change everything but what the weights after a step depend on. Runs of version 0.1 did not record a
    precision that the launcher chose, so theirs is not compared. Where the learning rates depend on the run's
    length, the length may not change either.
    """
    before, after = flatten(old), flatten(new)
    if before["train.precision"] is None:
        before["train.precision"] = after["train.precision"]
    return differences(before, after, {Effect.TRAINING} | ({Effect.LENGTH} if new.optim.decay else set()))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], effects: set[Effect]) -> list[str]:
    """Return the differences of two flat configs in keys with these effects, as `key: old -> new`."""
    table = {key: effect for key, _, effect in schema_keys(Config)}
    changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    # Keys of codes and layer tables are not in the schema by name; all of them change the weights.
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in changed if table.get(k, Effect.TRAINING) in effects]


def presets() -> list[Path]:
    """Return the YAML files of the package's presets; W&B's sweeps lie in a folder of their own."""
    return sorted(_preset_folder().glob("*.yaml"))


def _is_file(argument: str) -> bool:
    """Whether an argument is a config file, whose path may contain `=`, rather than an override."""
    return "=" not in argument or (argument.endswith((".yaml", ".yml")) and Path(argument).is_file())


def _preset_folder() -> Path:
    installed = PACKAGE / "configs"  # in a wheel; a checkout has them beside the package
    return installed if installed.is_dir() else PACKAGE.parent / "configs"


def _read_yaml(name: str) -> Any:
    path = Path(name)
    if not path.is_file():
        path = _preset_folder() / name.removeprefix("configs/")
    if not path.is_file():
        known = ", ".join(f"configs/{p.relative_to(_preset_folder())}" for p in presets())
        raise ConfigError(
            f"{redact_argument(name)}: no such config file; there are {known}; overrides are key=value"
        )
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: not readable as YAML: {yaml_problem(error)}") from None
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{name}: must contain `key: value` lines, not a {type(content).__name__}")
    return normalised(content or {})


def _merged(trees: Iterable[tuple[str, Any]]) -> Config:
    """Return the config of trees with their origins, of which later ones win."""
    merged: Any = OmegaConf.structured(Config)
    for origin, tree in trees:
        merged = _merge(merged, tree, origin)
    return _checked(merged)


def _merge(base: Any, tree: Any, where: str) -> Any:
    try:
        return OmegaConf.merge(base, tree)
    except ConfigKeyError as error:
        unknown = redact_url(where).partition("=")[0] if "=" in where else str(error.full_key)
        message = unknown_key_message(unknown.removeprefix("--"))
        raise ConfigError(f"{redact_argument(where)}: {message}") from None
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        problem = redacted((error.msg or str(error)).splitlines()[0], tree)
        raise ConfigError(f"{redact_argument(where)}: {key}{problem}") from None


def _checked(merged: Any) -> Config:
    try:
        config = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: not given; see --help for what it may be") from None
    except InterpolationResolutionError as error:
        message = str(error).splitlines()[0]
        cause = message.removeprefix("KeyError raised while resolving interpolation: ").strip('"')
        raise ConfigError(f"{error.full_key}: {cause}; set it, or write the value itself") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    assert isinstance(config, Config)
    _expand_paths(config)
    config.codes = {name: _of_its_kind(code) for name, code in config.codes.items() if code is not None}
    validate(config)
    return config


def _expand_paths(config: Config) -> None:
    """Replace `~` by the user's home, which a shell does not do after `key=`; shards are URLs or paths."""
    data, train, scores = config.data, config.train, config.scores
    for section, name in (
        (config, "run"),
        (data, "disk_cache"),
        (train, "init_from"),
        (scores, "features"),
    ):
        path = getattr(section, name)
        if path is not None:
            setattr(section, name, os.path.expanduser(path))


def _of_its_kind(code: CodeConfig) -> CodeConfig:
    """Return a code's config as an object of its kind's own class; of an unknown kind, as it is."""
    return CODE_CONFIGS.get(code.kind, CodeConfig)(**vars(code))
