"""A field of the configuration: its default, help text, range, and what it changes."""

import dataclasses
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any


class Effect(Enum):
    """What a config key changes; see `compare.py` for what follows for a resumed run and for a scorecard."""

    TRAINING = "the weights after each step"
    LENGTH = "the number of steps"
    SCORES = "the scores of given weights"
    NONE = "neither weights nor scores"


def field(
    default: Any,
    meaning: str,
    *,
    choices: tuple[str, ...] | None = None,
    minimum: float | None = None,
    above: float | None = None,
    effect: Effect | None = None,
) -> Any:
    """Return a dataclass field with its help text and its range.

    Args:
        default: the default; a list, a mapping or a dataclass is copied for each config.
        meaning: one line for `--help`: meaning, unit, reason for the default.
        choices: the words allowed (for each element of a list).
        minimum, above: the closed or open lower end of a number's range.
        effect: what the key changes, or, for a section, what each of its keys changes; None: as the section
            that contains it, and TRAINING at the top.
    """
    metadata = {"meaning": meaning, "choices": choices, "minimum": minimum, "above": above, "effect": effect}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def schema_keys(
    schema: Any, prefix: str = "", effect: Effect = Effect.TRAINING
) -> Iterator[tuple[str, Any, Effect]]:
    """Yield key, type hint and effect of each key that a schema names, such as `train.steps`.

    Args:
        schema: the dataclass of the config, or of a section.
        prefix: of its keys.
        effect: of the keys for which the schema states none.
    """
    hints = typing.get_type_hints(schema)
    for spec in dataclasses.fields(schema):
        key, hint, own = prefix + spec.name, hints[spec.name], spec.metadata["effect"] or effect
        if dataclasses.is_dataclass(hint):
            yield from schema_keys(hint, f"{key}.", own)
        else:
            yield key, hint, own
