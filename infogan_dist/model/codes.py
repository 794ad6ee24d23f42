"""The kinds of latent codes: prior, exact entropy and posterior of each, one class per kind.

In the paper's terms (Chen et al. 2016, arXiv 1606.03657), the generator's input is incompressible noise z and
latent codes c ~ p(c); the recognition network gives the parameters of Q(c|x); and

    L_I(G, Q) = E[log Q(c|x)] + H(c) <= I(c; G(z, c))                                        (eq. 5)

A code here may have several independent variables, [N, V]. All entropies and bounds are in nats.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Normal

from infogan_dist.config.codes import CodeConfig

# A code is dead if its gain is below this share of H(c) (discrete codes), or this many nats (continuous
# ones).
DEAD_SHARE, DEAD_NATS = 0.05, 0.05
LOG_SIGMA_RANGE = (-7.0, 7.0)  # exp(s) and 1/sigma^2 are finite in single precision


class Code(ABC):
    """A code of V independent variables.

    Attributes:
        variables: V.
        weight: lambda of its lower bound (paper, eq. 6).
        width: numbers that it occupies in the generator's input.
        num_posterior_params: numbers of the recognition network's output that describe its posterior.
        entropy: H of one variable, exact, in nats.
        marginal_bound: L_I of one variable, in nats, under the best posterior of the same family that ignores
            x. The gain is what the bound exceeds it by.
        dead_threshold: gain of all variables together, in nats, below which the code is dead.
        categories: number of categories of each variable of a categorical code, else None.
        is_continuous: whether its values are real numbers with an order, as of a slant or a width.
    """

    width: int
    num_posterior_params: int
    entropy: float
    marginal_bound: float
    dead_threshold: float
    categories: int | None = None
    is_continuous: bool = False

    def __init__(self, config: CodeConfig, variables: int):
        self.weight, self.variables = config.weight, variables

    @abstractmethod
    def from_uniform(self, u: Tensor) -> Tensor:
        """Return draws c [N, V] from the prior: its inverse distribution function of u in (0, 1) [N, V]."""

    @abstractmethod
    def posterior(self, params: Tensor) -> Distribution:
        """Return Q(c|x), batch shape [N, V], from the recognition network's [N, num_posterior_params]."""

    @abstractmethod
    def point_estimate(self, posterior: Distribution) -> Tensor:
        """Return the most likely value of each variable under a posterior, [N, V]."""

    @abstractmethod
    def traversal(self, count: int) -> Tensor:
        """Return float64 [n] values across the prior's range: all of a discrete code, else `count`."""

    @abstractmethod
    def parse(self, text: str) -> float:
        """Return the value that a user wrote. Raises ValueError with a description of the allowed values."""

    def encode(self, values: Tensor) -> Tensor:
        """Return c [N, V] as the generator's input [N, width]."""
        return values

    def mean_sigma(self, posterior: Distribution) -> Tensor | None:
        """Return the mean standard deviation [V] of a continuous code's posterior; None for other codes."""
        return None

    def usage(self, posterior: Distribution) -> Tensor | None:
        """Return how often each value of a discrete code is the most likely one, [V, K]; else None."""
        return None


class OneHotCategorical(Categorical):
    """A categorical distribution of indices, whose log_prob is a sum over the categories.

    It has the same values as torch's, which gathers one category. On a GPU the gradient of a sum is much
    faster than that of a gather, a scatter, if both are to be deterministic.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        categories = torch.arange(self.logits.shape[-1], device=value.device)
        return torch.where(value[..., None] == categories, self.logits, 0.0).sum(-1)


class CategoricalCode(Code):
    """`count` independent variables of `size` equally likely categories; H = ln size."""

    def __init__(self, config: CodeConfig):
        super().__init__(config, config.count)
        self.categories: int = config.size
        self.balanced = config.balanced
        self.width = self.num_posterior_params = config.count * config.size
        self.entropy, self.marginal_bound = math.log(config.size), 0.0
        self.dead_threshold = DEAD_SHARE * self.entropy * self.variables

    def from_uniform(self, u: Tensor) -> Tensor:
        return (u * self.categories).long().clamp_max(self.categories - 1)

    def encode(self, values: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(values, self.categories).flatten(1)

    def posterior(self, params: Tensor) -> Categorical:
        logits = params.unflatten(1, (self.variables, self.categories))
        return OneHotCategorical(logits=logits, validate_args=False)

    def point_estimate(self, posterior: Distribution) -> Tensor:
        assert isinstance(posterior, Categorical)
        return posterior.logits.argmax(-1)

    def usage(self, posterior: Distribution) -> Tensor:
        most_likely = self.point_estimate(posterior)[..., None]
        return (most_likely == torch.arange(self.categories, device=most_likely.device)).float().mean(0)

    def traversal(self, count: int) -> Tensor:
        return torch.arange(self.categories, dtype=torch.float64)

    def parse(self, text: str) -> float:
        return _parse_integer(text, self.categories)


class BernoulliCode(Code):
    """`size` independent variables that are 0 or 1 with probability 1/2; H = ln 2."""

    def __init__(self, config: CodeConfig):
        super().__init__(config, config.size)
        self.width = self.num_posterior_params = config.size
        self.entropy, self.marginal_bound = math.log(2), 0.0
        self.dead_threshold = DEAD_SHARE * self.entropy * self.variables

    def from_uniform(self, u: Tensor) -> Tensor:
        return (u >= 0.5).to(u.dtype)

    def posterior(self, params: Tensor) -> Bernoulli:
        return Bernoulli(logits=params, validate_args=False)

    def point_estimate(self, posterior: Distribution) -> Tensor:
        assert isinstance(posterior, Bernoulli)
        return posterior.mean

    def usage(self, posterior: Distribution) -> Tensor:
        assert isinstance(posterior, Bernoulli)
        ones = (posterior.logits > 0).float().mean(0)
        return torch.stack([1 - ones, ones], dim=1)

    def traversal(self, count: int) -> Tensor:
        return torch.arange(2, dtype=torch.float64)

    def parse(self, text: str) -> float:
        return _parse_integer(text, 2)


class ContinuousCode(Code):
    """A real code whose posterior is a factored Gaussian (paper, section 6 and appendix C).

    The standard deviation is learned as exp(s), or fixed; with a fixed one, -log Q is a mean squared error up
    to constants.

    Args:
        config: its `sigma` is the fixed standard deviation, or None.
        entropy: of the prior, in nats.
        mean_square: E[c^2] under the prior, whose mean is 0. The best Gaussian that ignores x has mean 0, and
            variance E[c^2] where the variance is learned.
    """

    is_continuous = True

    def __init__(self, config: CodeConfig, entropy: float, mean_square: float):
        super().__init__(config, config.size)
        self.fixed_sigma, self.entropy = config.sigma, entropy
        self.width = config.size
        self.num_posterior_params = config.size * (2 if config.sigma is None else 1)
        variance = mean_square if config.sigma is None else config.sigma**2
        log_density = -0.5 * math.log(2 * math.pi * variance) - 0.5 * mean_square / variance
        self.marginal_bound = entropy + log_density
        self.dead_threshold = DEAD_NATS

    def posterior(self, params: Tensor) -> Normal:
        if self.fixed_sigma is not None:
            return Normal(params, torch.full_like(params, self.fixed_sigma), validate_args=False)
        mean, log_sigma = params.chunk(2, dim=1)
        return Normal(mean, log_sigma.clamp(*LOG_SIGMA_RANGE).exp(), validate_args=False)

    def point_estimate(self, posterior: Distribution) -> Tensor:
        return posterior.mean

    def mean_sigma(self, posterior: Distribution) -> Tensor:
        return posterior.stddev.mean(0)


class UniformCode(ContinuousCode):
    """c ~ U(-1, 1); H = ln 2."""

    def __init__(self, config: CodeConfig):
        super().__init__(config, entropy=math.log(2), mean_square=1 / 3)

    def from_uniform(self, u: Tensor) -> Tensor:
        return 2 * u - 1

    def traversal(self, count: int) -> Tensor:
        return torch.linspace(-1, 1, count, dtype=torch.float64)

    def parse(self, text: str) -> float:
        return _parse_real(text, -1, 1)


class GaussianCode(ContinuousCode):
    """c ~ N(0, 1); H = (ln 2 pi e) / 2."""

    def __init__(self, config: CodeConfig):
        super().__init__(config, entropy=0.5 * math.log(2 * math.pi * math.e), mean_square=1.0)

    def from_uniform(self, u: Tensor) -> Tensor:
        return torch.special.ndtri(u)

    def traversal(self, count: int) -> Tensor:
        return torch.linspace(-2, 2, count, dtype=torch.float64)  # 95% of the prior

    def parse(self, text: str) -> float:
        return _parse_real(text)


# The class of each `codes.NAME.kind`; `config.codes.CODE_CONFIGS` has the class that checks its config.
CODES: dict[str, type] = {
    "categorical": CategoricalCode,
    "uniform": UniformCode,
    "gaussian": GaussianCode,
    "bernoulli": BernoulliCode,
}


def _parse_integer(text: str, size: int) -> float:
    if not text.isdecimal() or int(text) >= size:
        raise ValueError(f"a whole number from 0 to {size - 1}")
    return float(text)


def _parse_real(text: str, low: float = -math.inf, high: float = math.inf) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"a number from {low} to {high}" if math.isfinite(low) else "a finite number")
    return value
