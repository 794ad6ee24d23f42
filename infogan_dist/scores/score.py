"""What a score yields: numbers and pictures; or the reason why it is unavailable."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infogan_dist.errors import ConfigError


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
