"""What a score yields: numbers and pictures; or the reason why it is unavailable."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infogan_dist.errors import ConfigError

FAILED = "fails"  # start of the reason why a score is left out whose computation ended with an error


class ScoreUnavailableError(ConfigError):
    """A score needs what this model or these images do not have.

    The message starts with `needs`, so that it continues a sentence with the score's name.
    """


@dataclass(frozen=True)
class Score:
    """A number with its protocol.

    Attributes:
        name: as in scores.json and, after `score/`, in the logs.
        value: the number.
        protocol: how it was computed: images, samples, matching, batch norm, ... by name; `interval_95` if
            there is one.
        higher_is_better: the direction of improvement.
    """

    name: str
    value: float
    protocol: dict[str, Any] = field(default_factory=dict)
    higher_is_better: bool = True


@dataclass(frozen=True)
class Picture:
    """A picture that belongs to a score.

    Attributes:
        name: of its file, without the ending.
        pixels: uint8 [height, width, 3].
    """

    name: str
    pixels: np.ndarray


def format_protocol(protocol: dict[str, Any]) -> str:
    """Return a protocol as one line, without its tables."""

    def text(value: Any) -> str:
        if isinstance(value, list):
            return " to ".join(map(text, value))
        if isinstance(value, float):
            return f"{value:.4f}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    return "; ".join(
        f"{k.replace('_', ' ')}: {text(v)}" for k, v in protocol.items() if not isinstance(v, dict)
    )
