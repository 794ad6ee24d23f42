"""Entropies, priors, posteriors and the bound, against closed forms and torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, Normal, OneHotCategorical, Uniform

from infogan_dist.config.schema import CodeConfig
from infogan_dist.errors import ConfigError
from infogan_dist.model.latents import LatentSpec
from infogan_dist.model.losses import information_loss, lower_bound

CODES = {
    "digit": CodeConfig("categorical", size=10),
    "parts": CodeConfig("categorical", size=3, count=4),
    "style": CodeConfig("uniform", size=2, weight=0.1),
    "fixed": CodeConfig("uniform", size=1, sigma=1.0),
    "shape": CodeConfig("gaussian", size=3),
    "still": CodeConfig("gaussian", size=1, sigma=0.5),
    "coins": CodeConfig("bernoulli", size=5),
}
N = 200_000


@pytest.fixture(scope="module")
def spec() -> LatentSpec:
    return LatentSpec(7, CODES)


@pytest.fixture(scope="module")
def draws(spec: LatentSpec):
    return spec.sample(0, "test", 0, N, torch.float64)


def test_entropies_are_those_of_torch_distributions(spec: LatentSpec):
    expected = {
        "digit": Categorical(torch.ones(10)).entropy(),
        "parts": Categorical(torch.ones(3)).entropy(),
        "style": Uniform(-1.0, 1.0).entropy(),
        "shape": Normal(0.0, 1.0).entropy(),
        "coins": Bernoulli(0.5).entropy(),
    }
    for name, value in expected.items():
        assert spec.codes[name].entropy == pytest.approx(float(value), rel=1e-6)


def test_the_prior_has_the_moments_of_its_distribution(spec: LatentSpec, draws):
    moments = {
        "style": (0, 1 / 3),
        "fixed": (0, 1 / 3),
        "shape": (0, 1),
        "coins": (0.5, 0.25),
        "parts": (1, 2 / 3),
    }
    for name, (mean, variance) in moments.items():
        c = draws.codes[name].double()
        error = 5 * math.sqrt(variance / N)  # five standard errors
        assert (c.mean(0) - mean).abs().max() < error
        assert (c.var(0) - variance).abs().max() < 5 * math.sqrt(2 / N)
        if c.shape[1] > 1:  # independent variables
            off = torch.corrcoef(c.T) - torch.eye(c.shape[1])
            assert off.abs().max() < 5 / math.sqrt(N)
    shares = torch.bincount(draws.codes["digit"][:, 0], minlength=10) / N
    assert (shares - 0.1).abs().max() < 5 * math.sqrt(0.09 / N)
    noise = draws.vector[:, :7]
    assert noise.mean(0).abs().max() < 5 / math.sqrt(N)
    assert (noise.var(0) - 1).abs().max() < 5 * math.sqrt(2 / N)


def test_the_vector_is_noise_then_the_codes_in_order(spec: LatentSpec):
    latents = spec.sample(0, "test", 0, 64)
    assert latents.vector.shape == (64, spec.width) == (64, 7 + 10 + 12 + 2 + 1 + 3 + 1 + 5)
    digit = latents.vector[:, 7:17]
    assert torch.equal(digit.argmax(1), latents.codes["digit"][:, 0])
    assert torch.equal(digit.sum(1), torch.ones(64))
    parts = latents.vector[:, 17:29].unflatten(1, (4, 3))
    assert torch.equal(parts.argmax(2), latents.codes["parts"])
    assert torch.equal(latents.vector[:, 29:31], latents.codes["style"])
    assert torch.equal(latents.vector[:, -5:], latents.codes["coins"])


def test_a_batch_may_be_cut_over_processes_at_will(spec: LatentSpec):
    whole = spec.sample(0, "test", 100, 12)
    for parts in (1, 2, 3, 4):
        size = 12 // parts
        cut = [spec.sample(0, "test", 100 + i * size, size).vector for i in range(parts)]
        assert torch.equal(torch.cat(cut), whole.vector)


def test_log_probabilities_are_those_of_torch_distributions(spec: LatentSpec):
    torch.manual_seed(0)
    latents = spec.sample(0, "test", 0, 32, torch.float64)
    parameters = torch.randn(32, spec.parameters, dtype=torch.float64)
    posteriors = spec.posteriors(parameters)
    at = dict(zip(CODES, parameters.split([c.parameters for c in spec.codes.values()], 1), strict=True))
    one_hot = torch.nn.functional.one_hot(latents.codes["digit"][:, 0], 10).double()
    mean, s = at["style"].chunk(2, 1)
    expected = {
        "digit": OneHotCategorical(logits=at["digit"]).log_prob(one_hot),
        "parts": Categorical(logits=at["parts"].unflatten(1, (4, 3))).log_prob(latents.codes["parts"]).sum(1),
        "style": Independent(Normal(mean, s.exp()), 1).log_prob(latents.codes["style"]),
        "fixed": Normal(at["fixed"], 1.0).log_prob(latents.codes["fixed"])[:, 0],
        "still": Normal(at["still"], 0.5).log_prob(latents.codes["still"])[:, 0],
        "coins": Bernoulli(logits=at["coins"]).log_prob(latents.codes["coins"]).sum(1),
    }
    for name, value in expected.items():
        ours = posteriors[name].log_prob(latents.codes[name]).sum(1)
        torch.testing.assert_close(ours, value, rtol=1e-12, atol=1e-12)


def test_fixed_sigma_is_the_mean_squared_error_up_to_constants(spec: LatentSpec):
    latents = spec.sample(0, "test", 0, 64, torch.float64)
    means = torch.randn(64, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    minus = -spec.codes["fixed"].posterior(means).log_prob(latents.codes["fixed"]).mean()
    half_mse = 0.5 * (means - latents.codes["fixed"]).square().mean()
    assert float(minus - half_mse) == pytest.approx(0.5 * math.log(2 * math.pi), abs=1e-12)


def bounds_of(spec: LatentSpec, draws, parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    posteriors = {n: spec.codes[n].posterior(p) for n, p in parameters.items()}
    some = LatentSpec(0, {n: CODES[n] for n in parameters})
    return lower_bound(some, posteriors, draws.codes)


def test_a_discrete_bound_reaches_the_entropy_for_a_perfect_posterior_and_never_more(spec: LatentSpec, draws):
    perfect = {
        "digit": 60.0 * spec.codes["digit"].encode(draws.codes["digit"]).double(),
        "parts": 60.0 * spec.codes["parts"].encode(draws.codes["parts"]).double(),
        "coins": 120.0 * (draws.codes["coins"].double() - 0.5),
    }
    for name, bound in bounds_of(spec, draws, perfect).items():
        assert bound.tolist() == pytest.approx([spec.codes[name].entropy] * len(bound), abs=1e-9)
    torch.manual_seed(1)
    for scale in (0.1, 1.0, 10.0):
        noisy = {n: p + scale * torch.randn_like(p) for n, p in perfect.items()}
        for name, bound in bounds_of(spec, draws, noisy).items():
            assert (bound <= spec.codes[name].entropy + 1e-12).all()


@pytest.mark.parametrize("distributed_map", [0.2, 1.0])
def test_a_continuous_bound_is_its_closed_form(spec: LatentSpec, draws, distributed_map: float):
    # Q = N(c + distributed_map e, distributed_map^2), e ~ N(0, 1): E log Q = -ln(2 pi distributed_map^2)/2 - 1/2
    torch.manual_seed(0)
    for name in ("style", "shape"):
        c = draws.codes[name]
        mean = c + distributed_map * torch.randn_like(c)
        parameters = torch.cat([mean, torch.full_like(c, math.log(distributed_map))], 1)
        (bound,) = bounds_of(spec, draws, {name: parameters}).values()
        closed = spec.codes[name].entropy - 0.5 * math.log(2 * math.pi * distributed_map**2) - 0.5
        # log Q has standard deviation sqrt(1/2): five standard errors
        assert bound.tolist() == pytest.approx([closed] * len(bound), abs=5 * math.sqrt(0.5 / N))


def test_the_uninformed_bound_is_that_of_the_best_posterior_that_ignores_x(spec: LatentSpec, draws):
    blind = {
        "digit": torch.zeros(N, 10),
        "parts": torch.zeros(N, 12),
        "coins": torch.zeros(N, 5),
        "style": torch.cat([torch.zeros(N, 2), torch.full((N, 2), 0.5 * math.log(1 / 3))], 1),
        "fixed": torch.zeros(N, 1),
        "shape": torch.zeros(N, 6),
        "still": torch.zeros(N, 1),
    }
    for name, bound in bounds_of(spec, draws, {n: p.double() for n, p in blind.items()}).items():
        assert bound.tolist() == pytest.approx([spec.codes[name].marginal_bound] * len(bound), abs=0.015)
    assert spec.codes["style"].marginal_bound == pytest.approx(-0.176, abs=5e-4)
    assert spec.codes["fixed"].marginal_bound == pytest.approx(-0.392, abs=5e-4)
    assert spec.codes["shape"].marginal_bound == pytest.approx(0.0, abs=1e-12)
    for s in (-0.9, -0.3):  # no other standard deviation does better
        other = torch.cat([torch.zeros(N, 2), torch.full((N, 2), s)], 1).double()
        assert (bounds_of(spec, draws, {"style": other})["style"] < spec.codes["style"].marginal_bound).all()


def test_lambda_weighs_each_code(spec: LatentSpec, draws):
    bounds = {n: torch.full((c.variables,), 2.0) for n, c in spec.codes.items()}
    expected = -sum(c.weight * 2.0 * c.variables for c in spec.codes.values())
    assert float(information_loss(spec, bounds)) == pytest.approx(expected, rel=1e-6)


def test_extreme_outputs_of_q_stay_finite(spec: LatentSpec):
    latents = spec.sample(0, "test", 0, 4)
    for value in (-1e4, 1e4):
        for posterior, c in zip(
            spec.posteriors(torch.full((4, spec.parameters), value)).values(),
            latents.codes.values(),
            strict=True,
        ):
            assert posterior.log_prob(c).isfinite().all()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("digit", "10", "0 to 9"),
        ("digit", "-1", "0 to 9"),
        ("digit", "1.5", "0 to 9"),
        ("style.0", "1.2", "-1 to 1"),
        ("style.0", "x", "-1 to 1"),
        ("style.2", "0", "style.0, style.1"),
        ("style", "0", "style.0, style.1"),
        ("coins.0", "2", "0 to 1"),
        ("shape.0", "nan", "a finite number"),
        ("colour", "1", "digit, parts.0"),
    ],
)
def test_unknown_codes_and_values_are_refused_with_what_there_is(
    spec: LatentSpec, name: str, text: str, says: str
):
    with pytest.raises(ConfigError, match=says):
        spec.parse(name, text)


def test_named_values_are_understood(spec: LatentSpec):
    assert spec.parse("digit", "7") == ("digit", 0, 7.0)
    assert spec.parse("parts.3", "2") == ("parts", 3, 2.0)
    assert spec.parse("style.1", "-0.25") == ("style", 1, -0.25)
