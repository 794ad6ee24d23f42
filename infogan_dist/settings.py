"""From YAML files and `key=value` overrides to a checked `Config`, and back to a file."""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator
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

from infogan_dist.checks import check
from infogan_dist.config import MISSING, Config
from infogan_dist.errors import ConfigError, write_whole

PACKAGE = Path(__file__).parent


def read_config(arguments: list[str]) -> Config:
    """Merges YAML files, later ones win, then `key=value` overrides, and checks the result.

    Args:
        arguments: paths (`configs/mnist.yaml`, also found beside an installed package) and overrides
            (`train.steps=20000`, `codes.style=null`, `tracking.trackers=[wandb,tensorboard]`).

    Raises:
        ConfigError: a missing file, an unknown key, a wrong type or an impossible value.
    """
    merged: Any = OmegaConf.structured(Config)
    files = [a for a in arguments if "=" not in a]
    for name in files:
        merged = _merge(merged, _read_yaml(name), name)
    return _checked(_overridden(merged, [a for a in arguments if "=" in a]))


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Reads a resolved config back from a run folder, with `key=value` overrides. Raises `ConfigError`."""
    merged = _merge(OmegaConf.structured(Config), _read_yaml(str(path)), str(path))
    return _checked(_overridden(merged, overrides))


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved config, whole or not at all."""
    write_whole(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


def flat(config: Config) -> dict[str, Any]:
    """The config as `{"train.steps": 20000, ...}`, the form of overrides; lists stay lists."""

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(walk(dataclasses.asdict(config), ""))


def differences(old: Config, new: Config) -> list[str]:
    """What differs in fields that change the result, as `key: old -> new`."""
    return changes(flat(old), flat(new), free_keys())


def changes(before: dict[str, Any], after: dict[str, Any], free: set[str]) -> list[str]:
    """What differs between two flat configs in keys that are not free, as `key: old -> new`."""
    keys = [k for k in {**before, **after} if k not in free and before.get(k) != after.get(k)]
    return [f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys]


def free_keys() -> set[str]:
    """The keys that a resumed run may change, since they do not change its result."""
    return set(_free_keys(Config, ""))


def help_text() -> str:
    """Every field with its type, default and meaning, one a line."""
    rows = list(_describe(Config, ""))
    width = max(len(key) for key, *_ in rows)
    return "\n".join(
        f"  {key:{width}}  {meaning} [{kind}; {default}]" for key, kind, default, meaning in rows
    )


def presets() -> list[Path]:
    """The YAML files that come with the package; W&B's sweeps lie in a folder of their own."""
    return sorted(_preset_folder().glob("*.yaml"))


def _preset_folder() -> Path:
    installed = PACKAGE / "configs"  # in a wheel; a checkout has them beside the package
    return installed if installed.is_dir() else PACKAGE.parent / "configs"


def _read_yaml(name: str) -> Any:
    path = Path(name)
    if not path.is_file():
        path = _preset_folder() / name.removeprefix("configs/")
    if not path.is_file():
        known = ", ".join(f"configs/{p.relative_to(_preset_folder())}" for p in presets())
        raise ConfigError(f"{name}: no such config file; there are {known}; overrides are key=value")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: not readable as YAML: {error}") from None
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{name}: must hold `key: value` lines, not a {type(content).__name__}")
    return _nulls(content or {})


def _overridden(merged: Any, overrides: Iterable[str]) -> Any:
    for override in overrides:
        merged = _merge(merged, _parse_override(override), override)
    return merged


def _parse_override(text: str) -> Any:
    key, _, value = text.partition("=")
    key = key.removeprefix("--").strip()  # a sweep that passes --key=value means the same
    if not key or any(not part for part in key.split(".")):
        raise ConfigError(f"{text}: an override is key=value, such as train.steps=20000")
    try:
        tree = OmegaConf.to_container(OmegaConf.from_dotlist([f"{key}={value}"]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{text}: value not readable as YAML: {error}") from None
    return _nulls(tree)


def _nulls(node: Any) -> Any:
    """Reads Python's word None as null, since sweeps write it so."""
    if isinstance(node, dict):
        return {k: _nulls(v) for k, v in node.items()}
    if isinstance(node, list):
        return [_nulls(v) for v in node]
    return None if node == "None" else node


def _merge(base: Any, tree: Any, where: str) -> Any:
    try:
        return OmegaConf.merge(base, tree)
    except ConfigKeyError as error:
        unknown = where.partition("=")[0] if "=" in where else str(error.full_key)
        raise ConfigError(f"{where}: {_unknown(unknown.removeprefix('--'))}") from None
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{where}: {key}{(error.msg or str(error)).splitlines()[0]}") from None


def _checked(merged: Any) -> Config:
    try:
        config = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: not given; see --help for what it may be") from None
    except InterpolationResolutionError as error:
        said = str(error).splitlines()[0].removeprefix("KeyError raised while resolving interpolation: ")
        cause = said.strip('"')
        raise ConfigError(f"{error.full_key}: {cause}; set it, or write the value itself") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    assert isinstance(config, Config)
    config.codes = {name: code for name, code in config.codes.items() if code is not None}
    check(config)
    return config


def _unknown(key: str) -> str:
    known = [spec.name for spec in dataclasses.fields(Config)] + [row[0] for row in _describe(Config, "")]
    parts = key.split(".")
    if parts[0] == "codes" and len(parts) > 2:
        known = [k.replace("NAME", parts[1]) for k in known if k.startswith("codes.NAME.")]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6) or [
        k for k in known if k.split(".")[-1] == parts[-1]
    ]
    return f"unknown key {key}; " + (f"did you mean {near[0]}?" if near else "see --help for all keys")


def _describe(schema: Any, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, meaning) of every field; NAME and [] stand for a mapping's and a list's items."""
    hints = typing.get_type_hints(schema)
    for spec in dataclasses.fields(schema):
        hint, key = hints[spec.name], prefix + spec.name
        arguments = [a for a in typing.get_args(hint) if a is not type(None)]
        if dataclasses.is_dataclass(hint):
            yield from _describe(hint, key + ".")
            continue
        yield key, _type_name(hint, spec.metadata["choices"]), _default(spec), spec.metadata["meaning"]
        for item in arguments:
            inner = [a for a in typing.get_args(item) if dataclasses.is_dataclass(a)] or [item]
            if dataclasses.is_dataclass(inner[0]):
                yield from _describe(inner[0], key + (".NAME." if item is not inner[0] else "[]."))


def _type_name(hint: Any, choices: tuple[str, ...] | None) -> str:
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return _type_name(next(a for a in arguments if a is not type(None)), choices) + " or null"
    if typing.get_origin(hint) is list:
        return "list of " + _type_name(arguments[0], choices)
    if typing.get_origin(hint) is dict:
        return "mapping"
    if dataclasses.is_dataclass(hint):
        return "entries"
    return "|".join(choices) if choices else hint.__name__


def _default(spec: Any) -> str:
    value = spec.default if spec.default is not dataclasses.MISSING else spec.default_factory()
    return "must be given" if value == MISSING else f"default {'null' if value is None else value}"


def _free_keys(schema: Any, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(schema)
    for spec in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[spec.name]):
            yield from _free_keys(hints[spec.name], f"{prefix}{spec.name}.")
        elif spec.metadata["free"]:
            yield prefix + spec.name
