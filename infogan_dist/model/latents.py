"""The generator's input: noise and the named codes, drawn from the prior, fixed, or along a traversal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from infogan_dist.config.clustering import ClusteringConfig
from infogan_dist.config.codes import CodeConfig
from infogan_dist.errors import ConfigError
from infogan_dist.model.codes import CODES, CategoricalCode, Code
from infogan_dist.rng import uniforms


@dataclass(frozen=True)
class Latents:
    """A batch of the generator's inputs.

    Attributes:
        vector: noise and encoded codes (z, c), [N, LatentSpec.width].
        codes: each code's values [N, V] by name, for the lower bound.
        distortion: uniforms float64 [N, D] for the random changes of the generated images that the objective
            compares, if it does.
    """

    vector: Tensor
    codes: dict[str, Tensor]
    distortion: Tensor | None = None

    def __getitem__(self, rows: slice) -> "Latents":
        return self.map(lambda tensor: tensor[rows])

    def map(self, function: Callable[[Tensor], Tensor]) -> "Latents":
        """Return the latents with a function, such as a selection of rows, applied to each tensor."""
        distortion = None if self.distortion is None else function(self.distortion)
        return Latents(
            function(self.vector), {name: function(c) for name, c in self.codes.items()}, distortion
        )

    def to(self, device: torch.device) -> "Latents":
        """Return a copy on the device; the host does not wait for the copy."""
        if device.type == "cuda":
            # A copy from pageable memory would wait until the device has done all earlier work.
            return self.map(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
        return self.map(lambda tensor: tensor.to(device))


class LatentSpec:
    """The noise and the named codes, and their places in the generator's input and in Q's output.

    Attributes:
        noise: number of noise variables z ~ N(0, 1).
        codes: the codes by name, in the config's order.
        width: numbers of the generator's input.
        num_posterior_params: numbers of the recognition network's output.
    """

    def __init__(self, noise: int, codes: Mapping[str, CodeConfig | None]):
        self.noise = noise
        self.codes: dict[str, Code] = {n: CODES[c.kind](c) for n, c in codes.items() if c is not None}
        self.width = noise + sum(c.width for c in self.codes.values())
        self.num_posterior_params = sum(c.num_posterior_params for c in self.codes.values())

    def sample(
        self, seed: int, purpose: str, start: int, count: int, dtype: torch.dtype = torch.float32
    ) -> Latents:
        """Return the draws `start` to `start + count` from the prior, a pure function of the arguments.

        Each draw has a row of uniforms of its own, so a batch may be divided among processes in any way.

        Args:
            seed: the run's.
            purpose: name of the random sequence, such as `latents`.
            start, count: index of the first draw, and number of draws.
            dtype: of the vector and of continuous codes.
        """
        variables = [c.variables for c in self.codes.values()]
        u = torch.from_numpy(uniforms(seed, purpose, start, count, self.noise + sum(variables)))
        noise, *parts = u.split([self.noise, *variables], dim=1)
        values = {n: c.from_uniform(p) for (n, c), p in zip(self.codes.items(), parts, strict=True)}
        for name, code in self.codes.items():
            if isinstance(code, CategoricalCode) and code.balanced:
                values[name] = _balanced_categories(code, seed, f"{purpose}/{name}", start, count)
        return self.assemble(torch.special.ndtri(noise), values, dtype)

    def assemble(self, noise: Tensor, values: Mapping[str, Tensor], dtype: torch.dtype) -> Latents:
        """Return the generator's input from noise [N, noise] and each code's values [N, V]."""
        parts = [noise.to(dtype)] + [c.encode(values[n]).to(dtype) for n, c in self.codes.items()]
        floats = {n: v if v.dtype == torch.long else v.to(dtype) for n, v in values.items()}
        return Latents(torch.cat(parts, dim=1), floats)

    def posteriors(self, params: Tensor) -> dict[str, Distribution]:
        """Return Q(c|x) by code from the recognition network's output [N, num_posterior_params].

        Under mixed precision it is computed in fp32.
        """
        full = params if params.dtype == torch.float64 else params.float()
        parts = full.split([c.num_posterior_params for c in self.codes.values()], dim=1)
        return {n: c.posterior(p) for (n, c), p in zip(self.codes.items(), parts, strict=True)}

    def replace_params(self, params: Tensor, name: str, values: Tensor) -> Tensor:
        """Return the posteriors' parameters [N, num_posterior_params] with other ones of one code."""
        counts = [c.num_posterior_params for c in self.codes.values()]
        parts = dict(zip(self.codes, params.split(counts, dim=1), strict=True))
        return torch.cat([values.to(params.dtype) if n == name else part for n, part in parts.items()], dim=1)

    def clustered_categories(self, clustering: ClusteringConfig) -> int:
        """Return the number of categories that a first stage finds in the images; 0 without one."""
        return self.codes[clustering.code].categories or 0 if clustering.steps else 0

    def variables(self) -> list[str]:
        """Return the names of all variables, such as `digit`, and `style.0` of a code with several."""
        return [v for n, c in self.codes.items() for v in variable_names(n, c)]

    def variable(self, name: str) -> tuple[str, int]:
        """Return the code and the index that a variable's name stands for. Raises `ConfigError`."""
        code, _, index = name.partition(".")
        if code in self.codes:
            count = self.codes[code].variables
            if (index == "" and count == 1) or (index.isdecimal() and int(index) < count):
                return code, int(index or 0)
        raise ConfigError(f"{name}: no such code; there are {', '.join(self.variables())}")

    def with_values(self, latents: Latents, fixed: Mapping[str, str]) -> Latents:
        """Return the latents with some variables set to one value each.

        Args:
            latents: any.
            fixed: values by variable, as a user wrote them.

        Raises:
            ConfigError: an unknown variable, or a value outside its prior's range.
        """
        codes = {n: c.clone() for n, c in latents.codes.items()}
        for variable, text in fixed.items():
            name, index = self.variable(variable)
            try:
                codes[name][:, index] = self.codes[name].parse(text)
            except ValueError as error:
                raise ConfigError(f"codes.{variable}={text}: {variable} takes {error}") from None
        return self.assemble(latents.vector[:, : self.noise], codes, latents.vector.dtype)

    def traversal(self, base: Latents, variable: str, columns: int = 10) -> tuple[Latents, int]:
        """Return latents of a traversal grid, row by row: the variable varies, noise and other codes do not.

        Args:
            base: a row's noise and codes, [rows].
            variable: its name.
            columns: values of a continuous code; of a discrete one, all values are taken.

        Returns:
            The latents [rows * columns], and the number of columns.

        Raises:
            ConfigError: an unknown variable.
        """
        name, index = self.variable(variable)
        values = self.codes[name].traversal(columns)
        noise = base.vector[:, : self.noise].repeat_interleave(len(values), 0)
        codes = {n: c.repeat_interleave(len(values), 0) for n, c in base.codes.items()}
        codes[name][:, index] = values.to(codes[name].dtype).repeat(len(base.vector))
        return self.assemble(noise, codes, base.vector.dtype), len(values)


def _balanced_categories(code: CategoricalCode, seed: int, purpose: str, start: int, count: int) -> Tensor:
    """Return draws `start` to `start + count`, [count, V], of categories that are drawn without replacement.

    Each block of as many draws as there are categories is a random permutation of them, by the order of
    uniforms, so that a draw depends on its index alone, as `LatentSpec.sample` demands.
    """
    size = code.categories
    first, last = start // size, -(-(start + count) // size)
    draws = torch.from_numpy(uniforms(seed, purpose, first, last - first, size * code.variables))
    orders = draws.unflatten(1, (size, code.variables)).argsort(1).flatten(0, 1)
    return orders[start - first * size :][:count]


def variable_names(name: str, code: Code) -> list[str]:
    """Return `[name]` for a code of one variable, else `[name.0, name.1, ...]`."""
    return [name] if code.variables == 1 else [f"{name}.{i}" for i in range(code.variables)]
