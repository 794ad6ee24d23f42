"""The gain below which a code is dead: a share of the entropy of all its variables, or a number of nats."""

import math

import pytest

from infogan_dist.config.codes import CodeConfig
from infogan_dist.model.codes import CODES


@pytest.mark.parametrize(
    ("config", "entropy_of_all", "threshold"),
    [
        (CodeConfig("categorical", size=10), math.log(10), 0.05 * math.log(10)),
        (CodeConfig("categorical", size=3, count=4), 4 * math.log(3), 0.05 * 4 * math.log(3)),
        (CodeConfig("bernoulli", size=5), 5 * math.log(2), 0.05 * 5 * math.log(2)),
        (CodeConfig("uniform", size=2), 2 * math.log(2), 0.05),
        (CodeConfig("gaussian", size=3, sigma=0.5), 1.5 * math.log(2 * math.pi * math.e), 0.05),
    ],
    ids=lambda value: f"{value.kind}-{value.size}x{value.count}" if isinstance(value, CodeConfig) else None,
)
def test_the_threshold_of_a_dead_code_counts_all_its_variables(
    config: CodeConfig, entropy_of_all: float, threshold: float
):
    code = CODES[config.kind](config)
    assert code.entropy * code.variables == pytest.approx(entropy_of_all, rel=1e-12)
    assert code.dead_threshold == pytest.approx(threshold, rel=1e-12)
