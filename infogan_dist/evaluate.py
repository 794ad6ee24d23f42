"""Score a trained model.

    accelerate launch -m infogan_dist.evaluate runs/mnist                           all that the data allows
    accelerate launch -m infogan_dist.evaluate runs/mnist data=shards/mnist-test    with held-out images
    accelerate launch -m infogan_dist.evaluate runs/mnist scores=recovery,fidelity  some of them
    accelerate launch -m infogan_dist.evaluate runs/mnist step=20000 scores.images=50000 --out scores.json

RUN is a run folder (its newest checkpoint, or that of step=) or a checkpoint folder. `data` is short for
data.test, `scores` for scores.names; every other key=value overrides the run's config, as in training.

    recovery         clustering accuracy, NMI and ARI of a categorical code on real images, of both splits
    information      lower bound of each code on new latents, in nats, with 95% intervals
    control          rank correlation of continuous codes with slant and stroke width of generated digits
    fidelity         FID, KID, precision and recall of generated images against real ones
    conditional      whether generated images of a category show the class that was matched to it
    disentanglement  MIG, SAP, DCI, FactorVAE, beta-VAE, modularity, explicitness, if factors of variation are
                     known

Writes RUN/scores.json (each number with its protocol), and the confusion matrix as a picture. Any number of
processes computes the same result.
"""

import argparse
import sys
from pathlib import Path

from infogan_dist.config.load import CONFIG_FILE, load_config
from infogan_dist.config.schema import SCORES
from infogan_dist.console import exit_on_user_error, set_up_logging
from infogan_dist.errors import ConfigError, DataError
from infogan_dist.launcher import process_place
from infogan_dist.scores.output import SCORES_FILE, command_line

SHORT_KEYS = {"data": "data.test", "scores": "scores.names"}


def parse_overrides(words: list[str]) -> tuple[list[str], int | None]:
    """Parse `key=value` words into overrides of the run's config, and the step. Raises `ConfigError`."""
    overrides, step = [], None
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word}: not key=value, such as scores=recovery or data=shards/mnist-test")
        if key == "step":
            if not value.isdecimal():
                raise ConfigError(f"{word}: give a whole number")
            step = int(value)
        elif key == "scores":
            overrides.append(f"{SHORT_KEYS[key]}=[{value.strip('[]')}]")
        else:
            overrides.append(f"{SHORT_KEYS.get(key, key)}={value}")
    return overrides, step


def check_overrides(run: Path, overrides: list[str]) -> None:
    """Refuse a missing folder, or overrides that do not fit the config in it.

    The same is checked again for the checkpoint that is scored, but only after torch has been imported.

    Args:
        run: a run folder, or a checkpoint folder.
        overrides: `key=value` overrides.

    Raises:
        ConfigError, DataError: with the override or the folder.
    """
    if not run.is_dir():
        raise DataError(f"{run}: no such folder; name a run folder or a checkpoint folder")
    config = run / CONFIG_FILE  # of a run and of a checkpoint alike
    if config.is_file():
        load_config(config, overrides)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder or a checkpoint folder")
    parser.add_argument(
        "words", metavar="key=value", nargs="*", help=f"scores ({', '.join(SCORES)}), data, step, config keys"
    )
    parser.add_argument("--out", type=Path, help="the file to write [RUN/scores.json]")
    parser.add_argument(
        "--quiet", action="store_true", help="print warnings and errors only, and no progress"
    )
    arguments = parser.parse_intermixed_args(argv)
    set_up_logging(arguments.quiet)
    with exit_on_user_error():
        overrides, step = parse_overrides(arguments.words)
        check_overrides(arguments.run, overrides)
        # Imported only now, so that --help and a mistake on the command line are answered at once: torch and
        # scikit-learn take seconds.
        from infogan_dist.scores.evaluation import evaluate_checkpoint

        out = arguments.out or arguments.run / SCORES_FILE
        command = command_line("evaluate", sys.argv[1:] if argv is None else argv)
        table = evaluate_checkpoint(arguments.run, overrides, step, out, command)
    if process_place().is_first:
        print(table)


if __name__ == "__main__":
    main()
