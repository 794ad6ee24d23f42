"""Latent codes: prior, exact entropy, posterior and what lies between, one class a kind.

In the paper's terms (Chen et al. 2016, arXiv 1606.03657): the generator's input is incompressible noise
z and latent codes c ~ p(c); the recognition network gives the parameters of Q(c|x); and

    L_I(G, Q) = E[log Q(c|x)] + H(c) <= I(c; G(z, c))                                        (eq. 5)

A code here may hold several independent variables ([N, V]); all quantities are in nats.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Normal

from infogan_dist.config import CodeConfig
from infogan_dist.errors import ConfigError
from infogan_dist.streams import uniforms

# Below these gains a code is dead: a share of H(c) for a discrete code, nats for a continuous one.
DEAD_SHARE, DEAD_NATS = 0.05, 0.05
LOG_SIGMA_RANGE = (-7.0, 7.0)  # keeps exp(s) and 1/sigma^2 finite in single precision


class Code(ABC):
    """A named code of V independent variables.

    Attributes:
        variables: V.
        width: numbers it takes up in the generator's input.
        parameters: numbers that the recognition network gives for it.
        entropy: H of one variable, exact, in nats.
        least_gain: a gain over `uninformed`, of all variables together, below which the code is dead.
        uninformed: the lower bound of one variable under the best posterior of the same family that
            ignores x: what Q reaches without looking.
    """

    width: int
    parameters: int
    entropy: float
    uninformed: float
    least_gain: float

    def __init__(self, config: CodeConfig, variables: int):
        self.kind, self.weight, self.variables = config.kind, config.weight, variables

    @abstractmethod
    def from_uniform(self, u: Tensor) -> Tensor:
        """Draws from the prior by its inverse distribution function: u in (0, 1) [N, V] to c [N, V]."""

    @abstractmethod
    def posterior(self, parameters: Tensor) -> Distribution:
        """Q(c|x) with batch shape [N, V] from the recognition network's [N, parameters]."""

    @abstractmethod
    def traversal(self, count: int) -> Tensor:
        """About `count` values across the prior's range, float64 [n]."""

    @abstractmethod
    def parse(self, text: str) -> float:
        """A value that a user named. Raises ValueError saying which values there are."""

    def encode(self, values: Tensor) -> Tensor:
        """c [N, V] as the generator's input [N, width]."""
        return values

    def sigma(self, posterior: Distribution) -> Tensor | None:
        """The mean standard deviation [V] of a continuous code's posterior; None for a discrete one."""
        return None

    def usage(self, posterior: Distribution) -> Tensor | None:
        """The share of samples [V, K] for which each value of a discrete code is the likeliest, else None."""
        return None


class CategoricalCode(Code):
    """`count` independent variables of `size` equally likely categories; H = ln size."""

    def __init__(self, config: CodeConfig):
        super().__init__(config, config.count)
        self.size = config.size
        self.width = self.parameters = config.count * config.size
        self.entropy, self.uninformed = math.log(config.size), 0.0
        self.least_gain = DEAD_SHARE * self.entropy * self.variables

    def from_uniform(self, u: Tensor) -> Tensor:
        return (u * self.size).long().clamp_max(self.size - 1)

    def encode(self, values: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(values, self.size).flatten(1)

    def posterior(self, parameters: Tensor) -> Categorical:
        logits = parameters.unflatten(1, (self.variables, self.size))
        return Categorical(logits=logits, validate_args=False)

    def usage(self, posterior: Distribution) -> Tensor:
        assert isinstance(posterior, Categorical)
        likeliest = posterior.logits.argmax(-1, keepdim=True)
        return (likeliest == torch.arange(self.size, device=likeliest.device)).float().mean(0)

    def traversal(self, count: int) -> Tensor:
        return torch.arange(self.size, dtype=torch.float64)

    def parse(self, text: str) -> float:
        return _whole(text, self.size)


class BernoulliCode(Code):
    """`size` independent fair coins; H = ln 2."""

    def __init__(self, config: CodeConfig):
        super().__init__(config, config.size)
        self.width = self.parameters = config.size
        self.entropy, self.uninformed = math.log(2), 0.0
        self.least_gain = DEAD_SHARE * self.entropy * self.variables

    def from_uniform(self, u: Tensor) -> Tensor:
        return (u >= 0.5).to(u.dtype)

    def posterior(self, parameters: Tensor) -> Bernoulli:
        return Bernoulli(logits=parameters, validate_args=False)

    def usage(self, posterior: Distribution) -> Tensor:
        assert isinstance(posterior, Bernoulli)
        ones = (posterior.logits > 0).float().mean(0)
        return torch.stack([1 - ones, ones], dim=1)

    def traversal(self, count: int) -> Tensor:
        return torch.arange(2, dtype=torch.float64)

    def parse(self, text: str) -> float:
        return _whole(text, 2)


class ContinuousCode(Code):
    """A real code whose posterior is a factored Gaussian (paper, section 6 and appendix C).

    Its standard deviation is learned as exp(s), or fixed, which makes -log Q a mean squared error up to
    constants. `mean_square` is E[c^2] under the prior, whose mean is 0: the best Gaussian that ignores x
    has mean 0, and variance E[c^2] where it may choose.
    """

    def __init__(self, config: CodeConfig, entropy: float, mean_square: float):
        super().__init__(config, config.size)
        self.fixed_sigma, self.entropy = config.sigma, entropy
        self.width = config.size
        self.parameters = config.size * (2 if config.sigma is None else 1)
        variance = mean_square if config.sigma is None else config.sigma**2
        log_density = -0.5 * math.log(2 * math.pi * variance) - 0.5 * mean_square / variance
        self.uninformed = entropy + log_density
        self.least_gain = DEAD_NATS

    def posterior(self, parameters: Tensor) -> Normal:
        if self.fixed_sigma is not None:
            return Normal(parameters, torch.full_like(parameters, self.fixed_sigma), validate_args=False)
        mean, log_sigma = parameters.chunk(2, dim=1)
        return Normal(mean, log_sigma.clamp(*LOG_SIGMA_RANGE).exp(), validate_args=False)

    def sigma(self, posterior: Distribution) -> Tensor:
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
        return _real(text, -1, 1)


class GaussianCode(ContinuousCode):
    """c ~ N(0, 1); H = (ln 2 pi e) / 2."""

    def __init__(self, config: CodeConfig):
        super().__init__(config, entropy=0.5 * math.log(2 * math.pi * math.e), mean_square=1.0)

    def from_uniform(self, u: Tensor) -> Tensor:
        return torch.special.ndtri(u)

    def traversal(self, count: int) -> Tensor:
        return torch.linspace(-2, 2, count, dtype=torch.float64)  # 95% of the prior

    def parse(self, text: str) -> float:
        return _real(text)


KINDS: dict[str, type] = {
    "categorical": CategoricalCode,
    "uniform": UniformCode,
    "gaussian": GaussianCode,
    "bernoulli": BernoulliCode,
}


@dataclass(frozen=True)
class Latents:
    """A batch of the generator's inputs.

    Attributes:
        vector: (z, c) as the generator takes it, [N, LatentSpec.width].
        codes: each code's values [N, V] by name, for the lower bound.
    """

    vector: Tensor
    codes: dict[str, Tensor]

    def __getitem__(self, rows: slice) -> "Latents":
        return Latents(self.vector[rows], {name: c[rows] for name, c in self.codes.items()})

    def to(self, device: torch.device) -> "Latents":
        return Latents(
            self.vector.to(device, non_blocking=True),
            {name: c.to(device, non_blocking=True) for name, c in self.codes.items()},
        )


class LatentSpec:
    """Noise and the named codes: the one place that knows how they lie in a vector."""

    def __init__(self, noise: int, codes: Mapping[str, CodeConfig | None]):
        self.noise = noise
        self.codes: dict[str, Code] = {n: KINDS[c.kind](c) for n, c in codes.items() if c is not None}
        self.width = noise + sum(c.width for c in self.codes.values())
        self.parameters = sum(c.parameters for c in self.codes.values())
        if not self.codes:
            raise ConfigError("codes: none; add one, such as codes.digit={kind: categorical, size: 10}")

    def sample(
        self, seed: int, purpose: str, start: int, count: int, dtype: torch.dtype = torch.float32
    ) -> Latents:
        """The prior's draws number `start` to `start + count`, a pure function of the arguments.

        Each draw has a row of uniforms of its own, so a batch may be cut over processes at will.
        """
        variables = [c.variables for c in self.codes.values()]
        u = torch.from_numpy(uniforms(seed, purpose, start, count, self.noise + sum(variables)))
        noise, *parts = u.split([self.noise, *variables], dim=1)
        values = {n: c.from_uniform(p) for (n, c), p in zip(self.codes.items(), parts, strict=True)}
        return self.assemble(torch.special.ndtri(noise), values, dtype)

    def assemble(self, noise: Tensor, values: Mapping[str, Tensor], dtype: torch.dtype) -> Latents:
        """Noise [N, noise] and each code's values [N, V] as the generator's input."""
        parts = [noise.to(dtype)] + [c.encode(values[n]).to(dtype) for n, c in self.codes.items()]
        floats = {n: v if v.dtype == torch.long else v.to(dtype) for n, v in values.items()}
        return Latents(torch.cat(parts, dim=1), floats)

    def posteriors(self, parameters: Tensor) -> dict[str, Distribution]:
        """Q(c|x) by name from the recognition network's output [N, parameters], in at least fp32."""
        wide = parameters if parameters.dtype == torch.float64 else parameters.float()
        parts = wide.split([c.parameters for c in self.codes.values()], dim=1)
        return {n: c.posterior(p) for (n, c), p in zip(self.codes.items(), parts, strict=True)}

    def variables(self) -> list[str]:
        """What a traversal can be along: `digit` where a code has one variable, `style.0` where more."""
        return [v for n, c in self.codes.items() for v in variable_names(n, c)]

    def variable(self, name: str) -> tuple[str, int]:
        """The code and the index that a variable's name means. Raises `ConfigError`."""
        code, _, index = name.partition(".")
        if code in self.codes:
            count = self.codes[code].variables
            if (index == "" and count == 1) or (index.isdecimal() and int(index) < count):
                return code, int(index or 0)
        raise ConfigError(f"{name}: no such code; there are {', '.join(self.variables()) or 'none'}")

    def parse(self, name: str, text: str) -> tuple[str, int, float]:
        """The code, the index and the value that `name=text` means. Raises `ConfigError`."""
        code, index = self.variable(name)
        try:
            return code, index, self.codes[code].parse(text)
        except ValueError as error:
            raise ConfigError(f"codes.{name}={text}: {name} takes {error}") from None


def variable_names(name: str, code: Code) -> list[str]:
    """`[name]` for a code of one variable, else `[name.0, name.1, ...]`."""
    return [name] if code.variables == 1 else [f"{name}.{i}" for i in range(code.variables)]


def _whole(text: str, size: int) -> float:
    if not text.isdecimal() or int(text) >= size:
        raise ValueError(f"a whole number from 0 to {size - 1}")
    return float(text)


def _real(text: str, low: float = -math.inf, high: float = math.inf) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"a number from {low} to {high}" if math.isfinite(low) else "a finite number")
    return value
