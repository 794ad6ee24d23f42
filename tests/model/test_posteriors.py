"""Posteriors of recognition outputs that are not finite: the step reports them, so nothing may raise."""

import math

import pytest
import torch

from infogan_dist.config.codes import CodeConfig
from infogan_dist.model.codes import CODES


@pytest.mark.parametrize(
    "config",
    [
        CodeConfig("categorical", size=3, count=2),
        CodeConfig("bernoulli", size=3),
        CodeConfig("uniform", size=2),
        CodeConfig("uniform", size=2, sigma=0.5),
        CodeConfig("gaussian", size=2),
    ],
    ids=lambda config: f"{config.kind}-{config.sigma}",
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_log_probability_of_a_bad_output_is_not_finite(config: CodeConfig, value: float):
    code = CODES[config.kind](config)
    params = torch.full((4, code.num_posterior_params), value)
    values = code.from_uniform(torch.full((4, code.variables), 0.25))
    assert not code.posterior(params).log_prob(values).isfinite().any()
