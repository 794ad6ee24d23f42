"""A field of the configuration: its default, help text, range, and what it changes."""

import dataclasses
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
