"""The schema of the latent codes: each kind's keys, and what it refuses."""

from dataclasses import dataclass

from omegaconf import MISSING

from infogan_dist.config.fields import field
from infogan_dist.errors import ConfigError

CODE_KINDS = ("categorical", "uniform", "gaussian", "bernoulli")


@dataclass
class CodeConfig:
    """A latent code. A kind's own class checks what only that kind requires; see `CODE_CONFIGS`."""

    kind: str = field(MISSING, "prior p(c)", choices=CODE_KINDS)
    size: int = field(1, "categories of a categorical code; independent variables of the others", minimum=1)
    count: int = field(1, "independent categorical variables of that many categories", minimum=1)
    weight: float = field(
        1.0, "lambda of this code's lower bound (paper, eq. 6); 0.1 suits continuous codes", minimum=0
    )
    balanced: bool = field(
        False,
        "categorical: each category once, in random order, in every `size` consecutive draws; batches then "
        "differ less",
    )
    sigma: float | None = field(
        None, "standard deviation of a continuous code's posterior; null: learned, as exp(s)", above=0
    )

    def check(self, key: str) -> None:
        """Refuse keys that this kind does not have.

        Args:
            key: the code's place in the config, such as `codes.digit`.

        Raises:
            ConfigError: with the key and the remedy.
        """
        self._refuse_categorical_keys(key)
        if self.sigma is not None:
            raise ConfigError(f"{key}.sigma: only for continuous codes; remove it")

    def _refuse_categorical_keys(self, key: str) -> None:
        if self.count != 1:
            raise ConfigError(f"{key}.count: only for categorical codes; use {key}.size={self.count}")
        if self.balanced:
            raise ConfigError(f"{key}.balanced: only for categorical codes; remove it")


@dataclass
class CategoricalConfig(CodeConfig):
    """`count` variables of `size` categories."""

    def check(self, key: str) -> None:
        if self.size < 2:
            raise ConfigError(
                f"{key}.size: {self.size} categories, a categorical code needs at least 2; set {key}.size=10"
            )
        if self.sigma is not None:
            raise ConfigError(f"{key}.sigma: only for continuous codes; remove it")


@dataclass
class BernoulliConfig(CodeConfig):
    """`size` binary variables."""


@dataclass
class ContinuousConfig(CodeConfig):
    """`size` real variables, with a posterior of learned or fixed standard deviation."""

    def check(self, key: str) -> None:
        self._refuse_categorical_keys(key)


# The config class of each kind; `model.codes.CODES` has the code itself.
CODE_CONFIGS: dict[str, type[CodeConfig]] = {
    "categorical": CategoricalConfig,
    "uniform": ContinuousConfig,
    "gaussian": ContinuousConfig,
    "bernoulli": BernoulliConfig,
}
