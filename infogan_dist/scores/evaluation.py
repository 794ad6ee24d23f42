"""All scores of a model, computed side by side, as a table and as scores.json.

A score is a function of a `ScoredModel` that yields `Score`s (and pictures), and a line in `EVALUATORS`.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infogan_dist.config.schema import SCORES
from infogan_dist.files import report_unwritable, write_text
from infogan_dist.scores.control import control
from infogan_dist.scores.factors import factors
from infogan_dist.scores.fidelity import fidelity
from infogan_dist.scores.information import information
from infogan_dist.scores.recovery import recovery
from infogan_dist.scores.scored_model import NotMeasurable, Picture, Score, ScoredModel

EVALUATORS: dict[str, Callable[[ScoredModel], Iterator[Score | Picture]]] = {
    "recovery": recovery,
    "information": information,
    "control": control,
    "fidelity": fidelity,
    "disentanglement": factors,
}
assert tuple(EVALUATORS) == SCORES
LOWER_IS_BETTER = ("fid", "kid")  # names of scores begin so; of all others more is better
FILE = "scores.json"


@dataclass
class Scores:
    """What a model is worth.

    Attributes:
        scores: in the order of computing.
        pictures: uint8 [height, width, 3] by name.
        left_out: why a score was not computed, by the evaluator's name.
    """

    scores: list[Score] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """The numbers by name."""
        return {score.name: score.value for score in self.scores}


def evaluate(
    subject: ScoredModel,
    begun: Callable[[str], Any] = lambda name: None,
    done: Callable[[], Any] = lambda: None,
) -> Scores:
    """Computes the scores that the config names. To be called by all processes; all get the same.

    Args:
        begun: told each evaluator's name before it starts.
        done: called when it has ended.

    Raises:
        NotMeasurable: a score that was asked for by name needs what is not there.
        ConfigError, DataError: the images are not what they should be.
    """
    found = Scores()
    for name in subject.scores.names or EVALUATORS:
        begun(name)
        try:
            for item in EVALUATORS[name](subject):
                if isinstance(item, Picture):
                    found.pictures[item.name] = item.pixels
                else:
                    found.scores.append(item)
        except NotMeasurable as reason:
            if subject.scores.names:
                raise NotMeasurable(f"scores={name}: {reason}") from None
            found.left_out[name] = str(reason)
        done()
    return found


def worse(name: str) -> Callable[..., float]:
    """`min` or `max`, whichever picks the worse value of a score."""
    return max if name.rpartition("/")[2].startswith(LOWER_IS_BETTER) else min


def table(found: Scores) -> str:
    """The scores, one a line, each with its protocol."""
    rows = [(s.name, f"{s.value:.4f}", words(s.protocol)) for s in found.scores]
    wide = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    lines = [f"  {name:{wide[0]}}  {value:>{wide[1]}}  {words}" for name, value, words in rows]
    lines += [f"  not computed: {name}: it {reason}" for name, reason in found.left_out.items()]
    return "\n".join(lines)


def words(protocol: dict[str, Any]) -> str:
    """A protocol in a line; tables within it are left to the file."""

    def text(value: Any) -> str:
        if isinstance(value, list):
            return " to ".join(map(text, value))
        return (
            f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        )

    return "; ".join(
        f"{k.replace('_', ' ')}: {text(v)}" for k, v in protocol.items() if not isinstance(v, dict)
    )


def save(path: Path, found: Scores, about: dict[str, Any]) -> None:
    """Writes scores.json, whole or not at all: `about`, the numbers by name, and each one's protocol."""
    tree = {
        **about,
        "scores": found.values(),
        "protocol": {score.name: score.protocol for score in found.scores},
        "left_out": found.left_out,
    }
    with report_unwritable(path, "set --out to another place"):
        write_text(path, json.dumps(tree, indent=1) + "\n")
