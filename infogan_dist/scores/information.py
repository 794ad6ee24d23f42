"""Information: the lower bound of what images tell of the codes they were drawn from, on fresh draws.

L_I(G, Q) = H(c) + E[log Q(c|x)] (Chen et al. 2016, arXiv 1606.03657, eq. 5), in nats.
"""

import math
from collections.abc import Iterator

import numpy as np

from infogan_dist.scores.scored_model import Score, ScoredModel

NORMAL_95 = 1.96  # standard errors to either side of a mean


def information(subject: ScoredModel) -> Iterator[Score]:
    """`bound_CODE` and `gain_CODE`, with 95% intervals, for each way to read drawn images.

    The bound is of all of a code's variables together: of a discrete code at most H(c), of a continuous one a
    density's, without upper limit. The gain is the bound less that of the best posterior of the same family
    which ignores the image; 0 means that the images show nothing.
    """
    spec = subject.spec
    for reader in subject.fake_readers():
        posteriors = subject.fake_codes(reader)
        for name, code in spec.codes.items():
            values = subject.fake_values[name]
            logs = posteriors[name].log_prob(values).sum(1).numpy()
            bound = code.variables * code.entropy + logs
            marginal_bound = code.variables * code.marginal_bound
            about = {
                "samples": len(values),
                "images": "drawn afresh from the prior",
                "generator": subject.which_generator,
                "batch_norm": reader.treatment,
                "entropy": code.variables * code.entropy,
            }
            for kind, shift in (("bound", 0.0), ("gain", marginal_bound)):
                value, interval = _mean(bound - shift)
                name_of = f"{kind}_{name}{reader.suffix}"
                yield Score(
                    name_of, value, {**about, "interval_95": interval, "marginal_bound": marginal_bound}
                )


def _mean(values: np.ndarray) -> tuple[float, list[float]]:
    """A mean and its normal 95% interval."""
    mean = float(values.mean())
    error = NORMAL_95 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, [mean - error, mean + error]
