"""Entropies, priors, posteriors and the bound, against closed forms and torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, Normal, OneHotCategorical, Uniform

from infogan_dist.config.codes import CODE_CONFIGS, CODE_KINDS, CodeConfig
from infogan_dist.errors import ConfigError
from infogan_dist.model import codes
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
DRAWS = 200_000


@pytest.fixture(scope="module")
def spec() -> LatentSpec:
    return LatentSpec(7, CODES)


@pytest.fixture(scope="module")
def draws(spec: LatentSpec):
    return spec.sample(0, "test", 0, DRAWS, torch.float64)


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
        error = 5 * math.sqrt(variance / DRAWS)  # five standard errors
        assert (c.mean(0) - mean).abs().max() < error
        assert (c.var(0) - variance).abs().max() < 5 * math.sqrt(2 / DRAWS)
        if c.shape[1] > 1:  # independent variables
            off = torch.corrcoef(c.T) - torch.eye(c.shape[1])
            assert off.abs().max() < 5 / math.sqrt(DRAWS)
    shares = torch.bincount(draws.codes["digit"][:, 0], minlength=10) / DRAWS
    assert (shares - 0.1).abs().max() < 5 * math.sqrt(0.09 / DRAWS)
    noise = draws.vector[:, :7]
    assert noise.mean(0).abs().max() < 5 / math.sqrt(DRAWS)
    assert (noise.var(0) - 1).abs().max() < 5 * math.sqrt(2 / DRAWS)


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


def test_a_batch_may_be_divided_among_processes_in_any_way(spec: LatentSpec):
    batch = spec.sample(0, "test", 100, 12)
    for parts in (1, 2, 3, 4):
        size = 12 // parts
        shares = [spec.sample(0, "test", 100 + i * size, size).vector for i in range(parts)]
        assert torch.equal(torch.cat(shares), batch.vector)


def test_balanced_categories_are_drawn_without_replacement():
    """In each block of three draws; the order within a block, and the two variables, are independent."""
    balanced = {"parts": CodeConfig("categorical", 3, 2, balanced=True), "style": CODES["style"]}
    spec, blocks = LatentSpec(5, balanced), 3000
    draws = spec.sample(0, "test", 0, 3 * blocks)
    parts = draws.codes["parts"]
    in_order = torch.arange(3).view(1, 3, 1).expand(blocks, 3, 2)
    assert torch.equal(parts.view(blocks, 3, 2).sort(1).values, in_order)
    # The six orders of each variable, and the nine pairs at a place: counts within 5 standard deviations.
    orders = (parts.view(blocks, 3, 2) * torch.tensor([9, 3, 1]).view(1, 3, 1)).sum(1)
    pairs = (parts * torch.tensor([3, 1])).sum(1).view(blocks, 3)
    for values, share in ((orders[:, 0], 1 / 6), (orders[:, 1], 1 / 6), *((p, 1 / 9) for p in pairs.T)):
        counts = values.unique(return_counts=True)[1]
        assert len(counts) == round(1 / share)
        assert (counts / blocks - share).abs().max() < 5 * math.sqrt(share * (1 - share) / blocks)
    # A draw depends on its index alone, and the rest of the vector is as without balance.
    assert torch.equal(spec.sample(0, "test", 100, 7).vector, draws.vector[100:107])
    plain = LatentSpec(5, balanced | {"parts": CodeConfig("categorical", 3, 2)}).sample(0, "test", 0, 9)
    assert torch.equal(plain.vector[:, :5], draws.vector[:9, :5])
    assert torch.equal(plain.codes["style"], draws.codes["style"][:9])


def test_log_probabilities_are_those_of_torch_distributions(spec: LatentSpec):
    torch.manual_seed(0)
    latents = spec.sample(0, "test", 0, 32, torch.float64)
    params = torch.randn(32, spec.num_posterior_params, dtype=torch.float64)
    posteriors = spec.posteriors(params)
    sizes = [c.num_posterior_params for c in spec.codes.values()]
    at = dict(zip(CODES, params.split(sizes, 1), strict=True))
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


def bounds_of(spec: LatentSpec, draws, params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    posteriors = {n: spec.codes[n].posterior(p) for n, p in params.items()}
    subset = LatentSpec(0, {n: CODES[n] for n in params})
    return lower_bound(subset, posteriors, draws.codes)


def test_a_discrete_bound_is_at_most_the_entropy_which_a_perfect_posterior_reaches(spec: LatentSpec, draws):
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


@pytest.mark.parametrize("sigma", [0.2, 1.0])
def test_a_continuous_bound_is_its_closed_form(spec: LatentSpec, draws, sigma: float):
    # Q = N(c + sigma e, sigma^2), e ~ N(0, 1): E log Q = -ln(2 pi sigma^2)/2 - 1/2
    torch.manual_seed(0)
    for name in ("style", "shape"):
        c = draws.codes[name]
        mean = c + sigma * torch.randn_like(c)
        params = torch.cat([mean, torch.full_like(c, math.log(sigma))], 1)
        (bound,) = bounds_of(spec, draws, {name: params}).values()
        closed = spec.codes[name].entropy - 0.5 * math.log(2 * math.pi * sigma**2) - 0.5
        # log Q has standard deviation sqrt(1/2): five standard errors
        assert bound.tolist() == pytest.approx([closed] * len(bound), abs=5 * math.sqrt(0.5 / DRAWS))


def test_the_marginal_bound_is_that_of_the_best_posterior_that_ignores_x(spec: LatentSpec, draws):
    ignoring = {
        "digit": torch.zeros(DRAWS, 10),
        "parts": torch.zeros(DRAWS, 12),
        "coins": torch.zeros(DRAWS, 5),
        "style": torch.cat([torch.zeros(DRAWS, 2), torch.full((DRAWS, 2), 0.5 * math.log(1 / 3))], 1),
        "fixed": torch.zeros(DRAWS, 1),
        "shape": torch.zeros(DRAWS, 6),
        "still": torch.zeros(DRAWS, 1),
    }
    for name, bound in bounds_of(spec, draws, {n: p.double() for n, p in ignoring.items()}).items():
        assert bound.tolist() == pytest.approx([spec.codes[name].marginal_bound] * len(bound), abs=0.015)
    assert spec.codes["style"].marginal_bound == pytest.approx(-0.176, abs=5e-4)
    assert spec.codes["fixed"].marginal_bound == pytest.approx(-0.392, abs=5e-4)
    assert spec.codes["shape"].marginal_bound == pytest.approx(0.0, abs=1e-12)
    for s in (-0.9, -0.3):  # no other standard deviation is better
        other = torch.cat([torch.zeros(DRAWS, 2), torch.full((DRAWS, 2), s)], 1).double()
        assert (bounds_of(spec, draws, {"style": other})["style"] < spec.codes["style"].marginal_bound).all()


def test_lambda_weighs_each_code(spec: LatentSpec, draws):
    bounds = {n: torch.full((c.variables,), 2.0) for n, c in spec.codes.items()}
    expected = -sum(c.weight * 2.0 * c.variables for c in spec.codes.values())
    assert float(information_loss(spec, bounds)) == pytest.approx(expected, rel=1e-6)


def test_extreme_outputs_of_q_stay_finite(spec: LatentSpec):
    latents = spec.sample(0, "test", 0, 4)
    for value in (-1e4, 1e4):
        for posterior, c in zip(
            spec.posteriors(torch.full((4, spec.num_posterior_params), value)).values(),
            latents.codes.values(),
            strict=True,
        ):
            assert posterior.log_prob(c).isfinite().all()


@pytest.mark.parametrize(
    ("name", "text", "message"),
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
def test_unknown_codes_and_values_are_refused_with_the_allowed_ones(
    spec: LatentSpec, name: str, text: str, message: str
):
    with pytest.raises(ConfigError, match=message):
        spec.with_values(spec.sample(0, "test", 0, 2), {name: text})


def test_fixed_values_change_nothing_else(spec: LatentSpec):
    free = spec.sample(0, "test", 0, 6)
    fixed = spec.with_values(free, {"digit": "7", "parts.3": "2", "style.1": "-0.25"})
    assert fixed.codes["digit"].unique().tolist() == [7]
    assert fixed.codes["parts"][:, 3].unique().tolist() == [2]
    assert fixed.codes["style"][:, 1].unique().tolist() == [-0.25]
    assert torch.equal(fixed.codes["parts"][:, :3], free.codes["parts"][:, :3])
    assert torch.equal(fixed.codes["style"][:, 0], free.codes["style"][:, 0])
    assert torch.equal(fixed.codes["coins"], free.codes["coins"])
    assert torch.equal(fixed.vector[:, :7], free.vector[:, :7])


def test_rows_of_a_traversal_share_everything_but_the_variable(spec: LatentSpec):
    base = spec.sample(0, "test", 0, 3)
    latents, columns = spec.traversal(base, "style.1", columns=5)
    assert columns == 5
    table = latents.vector.reshape(3, 5, -1)
    changing = (table != table[:, :1]).any(0).any(0)
    assert changing.nonzero().flatten().tolist() == [
        7 + 10 + 12 + 1
    ]  # noise, digit, parts, style.0 come first
    assert not torch.equal(table[0, 0], table[1, 0])
    _, columns = spec.traversal(base, "digit", columns=5)
    assert columns == 10  # a discrete code takes all its values


def test_the_point_estimate_is_the_most_likely_value(spec: LatentSpec):
    torch.manual_seed(0)
    for name, code in spec.codes.items():
        posterior = code.posterior(torch.randn(8, code.num_posterior_params, dtype=torch.float64))
        estimate = code.point_estimate(posterior)
        assert estimate.shape == (8, code.variables)
        if code.categories is not None:
            each = torch.stack(
                [posterior.log_prob(torch.full((8, code.variables), k)) for k in range(code.categories)]
            )
            assert torch.equal(estimate, each.argmax(0)), name
        else:
            assert torch.equal(estimate, posterior.mean), name


def test_codes_and_their_configs_have_the_kinds_that_the_schema_offers():
    assert tuple(codes.CODES) == tuple(CODE_CONFIGS) == CODE_KINDS
    assert CodeConfig.__dataclass_fields__["kind"].metadata["choices"] == CODE_KINDS
