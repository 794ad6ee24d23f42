"""Disentanglement of the codes that Q reads from images whose factors of variation are known."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Normal

from infogan_dist.scores.disentanglement import disentanglement
from infogan_dist.scores.scored_model import NotMeasurable, Score, ScoredModel


def factors(subject: ScoredModel) -> Iterator[Score]:
    """Every score of `disentanglement`, on the training images and their known factors.

    A code variable is one column: of a categorical one the likeliest category, of the others the posterior's
    mean.
    """
    manifest = subject.manifests["train"]
    if len(manifest.factors) < 2:
        raise NotMeasurable(f"needs two known factors of variation or more, which {manifest.name} lacks")
    data = subject.images["train"]
    known = subject.per_image(data.sizes, len(manifest.factors), lambda i: data.read(i).factors)
    distributed_map, seed = subject.engine.distributed_map, subject.config.seed
    for reader in subject.real_readers():
        posteriors = subject.real_codes(reader, "train")
        codes = torch.cat([_values(p) for p in posteriors.values()], dim=1).numpy()
        discrete = [
            code.categories is not None for code in subject.spec.codes.values() for _ in range(code.variables)
        ]
        about = {
            "samples": len(codes),
            "split": "train",
            "batch_norm": reader.treatment,
            "factors": ", ".join(manifest.factors),
        }
        for name, value in disentanglement(codes, discrete, known.astype(np.int64), seed, distributed_map):
            yield Score(name + reader.suffix, value, about)


def _values(posterior: Distribution) -> Tensor:
    """What Q reads of each variable, float64 [N, V]."""
    if isinstance(posterior, Categorical):
        return posterior.logits.argmax(-1).double()
    assert isinstance(posterior, (Bernoulli, Normal))
    return posterior.mean.double()
