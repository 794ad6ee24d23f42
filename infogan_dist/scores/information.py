"""Information: the lower bound of the mutual information of codes and images.

L_I(G, Q) = H(c) + E[log Q(c|x)] (Chen et al. 2016, arXiv 1606.03657, eq. 5), in nats, on latents other than
those of training.
"""

from collections.abc import Iterator

from infogan_dist.scores.intervals import mean_interval
from infogan_dist.scores.score import Score
from infogan_dist.scores.scored_model import ScoredModel


def information(model: ScoredModel) -> Iterator[Score]:
    """Compute the lower bound and the gain of each code, with 95% intervals, for each reader.

    The bound is that of all variables of a code together. That of a discrete code is at most H(c); that of a
    continuous code contains a density and has no upper limit. The gain is the bound minus the bound of the
    best posterior of the same family that ignores the image; 0 means that the images carry no information on
    the code.

    Yields:
        `bound_CODE` and `gain_CODE`, in nats, and each again with `_recalibrated` where the networks have
        batch norm.
    """
    for reader in model.generated_readers():
        posteriors = model.generated_posteriors(reader)
        for name, code in model.spec.codes.items():
            values = model.generated_codes[name]
            log_likelihoods = posteriors[name].log_prob(values).sum(1).numpy()
            bounds = code.variables * code.entropy + log_likelihoods
            marginal_bound = code.variables * code.marginal_bound
            protocol = {
                "samples": len(values),
                "images": "drawn afresh from the prior",
                "generator": model.generator_weights,
                "batch_norm": reader.batch_norm,
                "entropy": code.variables * code.entropy,
            }
            for kind, baseline in (("bound", 0.0), ("gain", marginal_bound)):
                value, interval = mean_interval(bounds - baseline)
                # In score files the marginal bound has the name `uninformed`, which must not change.
                details = {**protocol, "interval_95": interval, "uninformed": marginal_bound}
                yield Score(f"{kind}_{name}{reader.suffix}", value, details)
