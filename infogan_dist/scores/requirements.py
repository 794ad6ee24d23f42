"""What each score requires of the config and of the data, checked before a run starts."""

from collections.abc import Callable

import torch

from infogan_dist.config.schema import Config
from infogan_dist.data.fetch import open_store
from infogan_dist.data.shards import LABEL_TYPE, Manifest, fetch_shard
from infogan_dist.data.tars import samples_of
from infogan_dist.model.latents import LatentSpec
from infogan_dist.scores.features import DIGIT_SHAPE, load_features
from infogan_dist.scores.fidelity import NEIGHBOURS
from infogan_dist.scores.score import ScoreUnavailableError
from infogan_dist.scores.scored_model import check_test_shape

Manifests = dict[str, Manifest]  # the real images by split


def check_scores(config: Config, train: Manifest, test: Manifest | None) -> None:
    """Refuse scores that are named in the config and cannot be computed, before a model is trained for them.

    Only what the config and the manifests show is checked; at most one shard of each split is read.

    Args:
        config: the run's config.
        train: the training images.
        test: held-out images, or None.

    Raises:
        ScoreUnavailableError: the model or the images lack what a named score needs.
        ConfigError: the held-out images have another shape, or `scores.features` does not fit the images.
        DataError: a shard cannot be read.
    """
    manifests = {"train": train} | ({"test": test} if test else {})
    check_test_shape(train, test)
    requested = config.scores.names
    for name in requested or []:
        requirement = REQUIREMENTS.get(name)
        reason = None if requirement is None else requirement(config, manifests)
        if reason is not None:
            raise unavailable(name, reason)
    # A network that is named must work even where the scores themselves are optional.
    if config.scores.features is not None and (
        requested is None or {"fidelity", "conditional"} & {*requested}
    ):
        load_features(config.scores.features, train.image_shape, torch.device("cpu"))


def unavailable(name: str, reason: object) -> ScoreUnavailableError:
    """Return the error for a score that the config names, with the reason, which starts with `needs`."""
    return ScoreUnavailableError(f"scores.names: {name} {reason}; provide it, or remove {name}")


def _recovery(config: Config, manifests: Manifests) -> str | None:
    """Recovery and conditional fidelity, which both match categories to classes."""
    if all(code.categories is None for code in LatentSpec(config.noise, config.codes).codes.values()):
        return "needs a categorical code"
    for manifest in manifests.values():
        # Sets with labels, but without names of the classes, are possible.
        if not manifest.label_names and not _has_label(config, manifest):
            return f"needs labels, but some images of {manifest.name} have none"
    return None


def _has_label(config: Config, manifest: Manifest) -> bool:
    """Return whether the first image of a set has a label."""
    url, content = fetch_shard(manifest, 0, open_store(config.data))
    _, member = next(samples_of(content, url), ("", {}))
    return LABEL_TYPE in member


def _control(config: Config, manifests: Manifests) -> str | None:
    if not any(code.is_continuous for code in LatentSpec(config.noise, config.codes).codes.values()):
        return "needs a continuous code"
    channels = manifests["train"].image_shape[0]
    if channels != 1:
        images = "grey images with bright strokes on a dark background"
        return f"needs {images}, but these have {channels} channels"
    return None


def _fidelity(config: Config, manifests: Manifests) -> str | None:
    scores, train = config.scores, manifests["train"]
    if scores.features is None and train.image_shape != DIGIT_SHAPE:
        return "needs scores.features=FILE, a TorchScript network, for images that are not digits of 28x28"
    count = min(scores.images, scores.limit or train.samples, train.samples)
    if count <= NEIGHBOURS:
        minimum = NEIGHBOURS + 1
        return f"needs {minimum} generated and real images, but scores.images and scores.limit allow {count}"
    return None


def _disentanglement(config: Config, manifests: Manifests) -> str | None:
    train = manifests["train"]
    if len(train.factors) < 2:
        return f"needs at least two known factors of variation, but {train.name} has {len(train.factors)}"
    return None


# Functions that return the reason why a score is unavailable, or None; scores without one need nothing.
REQUIREMENTS: dict[str, Callable[[Config, Manifests], str | None]] = {
    "recovery": _recovery,
    "control": _control,
    "fidelity": _fidelity,
    "conditional": _recovery,
    "disentanglement": _disentanglement,
}
