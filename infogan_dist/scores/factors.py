"""Disentanglement of the codes that Q infers from images whose factors of variation are known."""

from collections.abc import Iterator

import numpy as np
import torch

from infogan_dist.scores.disentanglement import disentanglement, protocols
from infogan_dist.scores.representation import Representation
from infogan_dist.scores.score import Score, ScoreUnavailableError
from infogan_dist.scores.scored_model import ScoredModel


def factors(model: ScoredModel) -> Iterator[Score]:
    """Compute every score of `disentanglement` on the training images, for each reader.

    A code variable is one column, the point estimate of its posterior: the most likely category, or the mean.

    Yields:
        The scores by the names of `disentanglement`, and each again with `_recalibrated` where the networks
        have batch norm.

    Raises:
        ScoreUnavailableError: the images have fewer than two known factors.
    """
    manifest = model.manifests["train"]
    if len(manifest.factors) < 2:
        raise ScoreUnavailableError(
            f"needs at least two known factors of variation, but {manifest.name} has {len(manifest.factors)}"
        )
    dataset = model.datasets["train"]
    values = model.per_image(dataset.sizes, len(manifest.factors), lambda i: dataset.read(i).factors)
    discrete = [
        code.categories is not None for code in model.spec.codes.values() for _ in range(code.variables)
    ]
    for reader in model.real_readers():
        posteriors = model.real_posteriors(reader, "train")
        estimates = [code.point_estimate(posteriors[name]) for name, code in model.spec.codes.items()]
        codes = torch.cat([estimate.double() for estimate in estimates], dim=1).numpy()
        protocol = {
            "samples": len(codes),
            "split": "train",
            "batch_norm": reader.batch_norm,
            "factors": ", ".join(manifest.factors),
        }
        representation = Representation(codes, discrete, values.astype(np.int64))
        details = protocols(representation)
        for name, value in disentanglement(representation, model.config.seed, model.distributed_map):
            yield Score(name + reader.suffix, value, {**protocol, **details[name]})
