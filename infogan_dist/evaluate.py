"""Scores a trained model.

    accelerate launch -m infogan_dist.evaluate runs/mnist                           all that the data allows
    accelerate launch -m infogan_dist.evaluate runs/mnist data=shards/mnist-test    with held-out images
    accelerate launch -m infogan_dist.evaluate runs/mnist scores=recovery,fidelity  some of them
    accelerate launch -m infogan_dist.evaluate runs/mnist step=20000 scores.images=50000 --out scores.json

RUN is a run folder (its newest checkpoint, or that of step=) or a checkpoint folder. `data` is short for
data.test, `scores` for scores.names; every other key=value overrides the run's config, as in training.

    recovery         each category matched to a class on training images: accuracy, NMI, ARI on both splits
    information      the lower bound of each code on fresh draws, in nats, with 95% intervals
    control          rank correlation of continuous codes with slant and stroke width of drawn digits
    fidelity         FID, KID, precision and recall of drawn images against real ones
    disentanglement  MIG, SAP, DCI, FactorVAE, beta-VAE, modularity, where factors of variation are known

Writes RUN/scores.json (each number with its protocol) and the confusion matrix as a picture; on any number
of processes, with the same result.
"""

import argparse
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from infogan_dist import __version__
from infogan_dist.config.load import load_config
from infogan_dist.config.schema import SCORES, Config
from infogan_dist.console import exit_on_user_error
from infogan_dist.data.shards import Manifest, load_manifest
from infogan_dist.errors import ConfigError
from infogan_dist.files import report_unwritable
from infogan_dist.runtime import checkpoint
from infogan_dist.runtime.distributed import Engine
from infogan_dist.scores.evaluation import FILE, evaluate, save, table
from infogan_dist.scores.scored_model import ScoredModel

SHORT = {"data": "data.test", "scores": "scores.names"}


def open_subject(found: checkpoint.Checkpoint, config: Config) -> ScoredModel:
    """A checkpoint's model with the images that its config names. Raises `ConfigError`, `DataError`."""
    train = load_manifest(config.data.shards)
    test = None if config.data.test is None else load_manifest(config.data.test)
    return ScoredModel(Engine(config), config, partial(checkpoint.load_network, found), train, test)


def read_words(words: list[str]) -> tuple[list[str], int | None]:
    """The overrides that `key=value` words mean, and the step. Raises `ConfigError`."""
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
            overrides.append(f"{SHORT[key]}=[{value.strip('[]')}]")
        else:
            overrides.append(f"{SHORT.get(key, key)}={value}")
    return overrides, step


def _about(found: checkpoint.Checkpoint, subject: ScoredModel) -> dict:
    def data(manifest: Manifest) -> dict:
        return {
            "name": manifest.name,
            "images": manifest.samples,
            "fingerprint": manifest.fingerprint(),
        }

    return {
        "step": found.step,
        "version": __version__,
        "trained_on": {"name": found.metadata["data"], "fingerprint": found.metadata["data_fingerprint"]},
        "data": {split: data(manifest) for split, manifest in subject.manifests.items()},
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder or a checkpoint folder")
    parser.add_argument(
        "words", metavar="key=value", nargs="*", help=f"scores ({', '.join(SCORES)}), data, step, config keys"
    )
    parser.add_argument("--out", type=Path, help="the file to write [RUN/scores.json]")
    arguments = parser.parse_intermixed_args(argv)
    with exit_on_user_error():
        overrides, step = read_words(arguments.words)
        found = checkpoint.require(arguments.run, step)
        config = load_config(found.path / checkpoint.CONFIG, overrides)
        # Scores are in full precision, whatever the run was trained in and on.
        config.train.precision = "fp64" if config.train.precision == "fp64" else "fp32"
        subject = open_subject(found, config)
        names = subject.scores.names or SCORES
        bar = tqdm(total=len(names), unit="score", disable=not subject.engine.is_main, dynamic_ncols=True)

        with bar:
            scores = evaluate(subject, bar.set_postfix_str, bar.update)
        if subject.engine.is_main:
            out = arguments.out or arguments.run / FILE
            save(out, scores, _about(found, subject))
            for name, pixels in scores.pictures.items():
                path = out.parent / f"{name.replace('/', '_')}.png"
                with report_unwritable(path, "set --out to another place"):
                    Image.fromarray(pixels).save(path)
            print(f"{out}: step {found.step:,}\n{table(scores)}")
        subject.engine.close()


if __name__ == "__main__":
    main()
