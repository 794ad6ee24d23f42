"""Computing the scores of a model, and writing them to scores.json.

A score is a function that maps a `ScoredModel` to `Score`s and `Picture`s, and an entry of `SCORES`.
"""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from infogan_dist import __version__
from infogan_dist.config.load import CONFIG_FILE, load_config
from infogan_dist.console import progress
from infogan_dist.data.shards import load_manifest
from infogan_dist.errors import UserError
from infogan_dist.files import report_unwritable
from infogan_dist.launcher import process_place
from infogan_dist.runtime import checkpoint
from infogan_dist.runtime.distributed import Engine
from infogan_dist.runtime.failure import ends_all_processes
from infogan_dist.runtime.pictures import save_picture
from infogan_dist.scores.conditional import conditional
from infogan_dist.scores.control import control
from infogan_dist.scores.factors import factors
from infogan_dist.scores.fidelity import fidelity
from infogan_dist.scores.information import information
from infogan_dist.scores.output import REMEDY, code_origin, prepare_output, write_output
from infogan_dist.scores.recovery import recovery
from infogan_dist.scores.requirements import check_scores, unavailable
from infogan_dist.scores.score import FAILED, Picture, Score, ScoreUnavailableError, format_protocol
from infogan_dist.scores.scored_model import ScoredModel

# The function of each of `scores.names`; `config.schema.SCORES` has the same names.
SCORES: dict[str, Callable[[ScoredModel], Iterator[Score | Picture]]] = {
    "recovery": recovery,
    "information": information,
    "control": control,
    "fidelity": fidelity,
    "conditional": conditional,
    "disentanglement": factors,
}
logger = logging.getLogger(__name__)


@dataclass
class Scores:
    """The scores of a model.

    Attributes:
        scores: in the order of computation.
        pictures: uint8 [height, width, 3] by name.
        left_out: the reason why a score is unavailable, which starts with `needs` or with `FAILED`, by its
            name in `SCORES`.
        errors: the errors of scores that failed, by the same names.
    """

    scores: list[Score] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """Return the numbers by name."""
        return {score.name: score.value for score in self.scores}

    def lower_is_better(self) -> list[str]:
        """Return the names of the scores of which lower values are better."""
        return [score.name for score in self.scores if not score.higher_is_better]


def evaluate(model: ScoredModel, show_progress: bool = False) -> Scores:
    """Compute the scores that the config names, or all that the data allows. To be called by all processes.

    An error of one score does not affect the others: it is logged as a warning, and the score is left out.

    Args:
        model: the model with its images.
        show_progress: show progress on stderr.

    Returns:
        The scores, the same on all processes.

    Raises:
        ScoreUnavailableError: a score that the config names is unavailable.
    """
    requested = model.config.scores.names
    names, result = requested or list(SCORES), Scores()
    with progress(len(names), "score", disable=not (show_progress and model.engine.is_main)) as bar:
        for name in names:
            bar.set_postfix_str(name)
            try:
                _add_items(result, list(SCORES[name](model)), model)
            except ScoreUnavailableError as reason:
                if requested:
                    raise unavailable(name, reason) from None
                result.left_out[name] = str(reason)
            except Exception as error:  # an unexpected one, of a score or of a network of the user
                kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                text = kind + " ".join(str(error).split())
                result.left_out[name], result.errors[name] = f"{FAILED} ({text})", error
                logger.debug("traceback of %s", name, exc_info=True)
                if not model.engine.fails_alike(f"{name} is not computed: {text}"):
                    raise
            bar.update()
    return result


def _add_items(result: Scores, items: list[Score | Picture], model: ScoredModel) -> None:
    """Add what a score has computed, with the sample of real images in its protocol."""
    for item in items:
        if isinstance(item, Picture):
            result.pictures[item.name] = item.pixels
            continue
        dataset = model.datasets.get(item.protocol.get("split", ""))
        sampling = {} if dataset is None else {"sampling": dataset.sampling}
        result.scores.append(replace(item, protocol={**sampling, **item.protocol}))


@ends_all_processes()
def evaluate_checkpoint(
    run: Path, overrides: list[str], step: int | None, out: Path, command: str | None = None
) -> str:
    """Score a checkpoint, and write the scores and their pictures. To be called by all processes.

    Args:
        run: a run folder, or a checkpoint folder.
        overrides: `key=value` overrides of the run's config.
        step: a saved step of a run folder; None for the newest.
        out: the file of the scores; pictures are written to its folder.
        command: the command line, which is written with the scores; None: none.

    Returns:
        The scores with their protocols, as text for the user.

    Raises:
        ConfigError, DataError: the checkpoint or the images are missing, a requested score is unavailable, or
            `out` cannot be written.
        Exception: the error of a score, if no score could be computed.
    """
    saved = checkpoint.require(run, step)
    if process_place().is_first:
        prepare_output(out)
    config = load_config(saved.path / CONFIG_FILE, overrides)
    # Scores are computed in full precision, whatever precision and device the run was trained with.
    config.train.precision = "fp64" if config.train.precision == "fp64" else "fp32"
    train = load_manifest(config.data.shards)
    test = None if config.data.test is None else load_manifest(config.data.test)
    check_scores(config, train, test)
    engine = Engine(config)
    model = ScoredModel(engine, config, partial(checkpoint.load_network, saved), train, test)
    result = evaluate(model, show_progress=True)
    if result.errors and not result.scores:
        raise next(iter(result.errors.values()))
    if engine.is_main:
        write_scores(out, result, _origin(saved, model, command))
        for name, pixels in result.pictures.items():
            path = out.parent / f"{name.replace('/', '_')}.png"
            with report_unwritable(path, REMEDY):
                save_picture(pixels, path)
    engine.close()
    return f"{out}: step {saved.step:,}\n{format_table(result)}"


def write_scores(path: Path, result: Scores, origin: dict[str, Any]) -> None:
    """Write scores.json.

    Args:
        path: the file; its folder is created where it is missing.
        result: the scores.
        origin: what was scored; comes first in the file.

    Raises:
        DataError: it cannot be written.
    """
    content = {
        **origin,
        "scores": result.values(),
        "lower_is_better": result.lower_is_better(),
        "protocol": {score.name: score.protocol for score in result.scores},
        "left_out": result.left_out,
    }
    write_output(path, json.dumps(content, indent=1) + "\n")


def format_table(result: Scores) -> str:
    """Return the scores with their protocols as text, one per line."""
    rows = [(s.name, f"{s.value:.4f}", format_protocol(s.protocol)) for s in result.scores]
    widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    lines = [f"  {name:{widths[0]}}  {value:>{widths[1]}}  {protocol}" for name, value, protocol in rows]
    lines += [f"  not computed: {name}, which {reason}" for name, reason in result.left_out.items()]
    return "\n".join(lines)


def _origin(saved: checkpoint.Checkpoint, model: ScoredModel, command: str | None) -> dict[str, Any]:
    """Return what was scored, for scores.json: the step, the package's version and commit, and the images."""
    return {
        "step": saved.step,
        "version": __version__,
        **code_origin(),
        **({} if command is None else {"command": command}),
        "trained_on": {"name": saved.metadata["data"], "fingerprint": saved.metadata["data_fingerprint"]},
        "data": {
            split: {"name": m.name, "images": m.samples, "fingerprint": m.fingerprint()}
            for split, m in model.manifests.items()
        },
    }
