"""Flat configs, and which keys may differ between two uses of a run: the only place that decides it."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from infogan_dist.config.fields import Effect
from infogan_dist.config.schema import Config

Flat = dict[str, Any]  # {"train.steps": 20000, ...}, the form of overrides; lists stay lists


def flatten(config: Config) -> Flat:
    """Return the config as `{"train.steps": 20000, ...}`."""

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(walk(dataclasses.asdict(config), ""))


def resume_conflicts(old: Config, new: Config) -> list[str]:
    """Return what differs in keys that a resumed run may not change, as `key: old -> new`.

    It may change everything but what the weights after a step depend on. A setting under which the weights
    depend on the run's length as well, such as a learning rate schedule, would fix the length here.
    """
    return differences(flatten(old), flatten(new), {Effect.TRAINING})


def differences(old: Mapping[str, Any], new: Mapping[str, Any], effects: set[Effect]) -> list[str]:
    """Return the differences of two flat configs in keys with these effects, as `key: old -> new`."""
    table = _effects(Config, "", Effect.TRAINING)
    changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    # Keys of codes and layer tables are not in the schema by name; all of them change the weights.
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in changed if table.get(k, Effect.TRAINING) in effects]


def _effects(schema: Any, prefix: str, default: Effect) -> dict[str, Effect]:
    """Return the effect of each key that the schema names; a key without one has that of its section."""
    hints, table = typing.get_type_hints(schema), {}
    for spec in dataclasses.fields(schema):
        effect = spec.metadata["effect"] or default
        if dataclasses.is_dataclass(hints[spec.name]):
            table |= _effects(hints[spec.name], f"{prefix}{spec.name}.", effect)
        else:
            table[prefix + spec.name] = effect
    return table
