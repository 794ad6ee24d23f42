"""A trained model for Python users.

from infogan_dist.inference import load_model

model = load_model("runs/mnist")
latents = model.sample(25, codes={"digit": "3"})
images = model.generate(latents)                     # [25, 1, 28, 28] in [-1, 1]
posteriors = model.encode(images)                    # {"digit": Categorical, "style": Normal}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Distribution

from infogan_dist.config.load import CONFIG_FILE, load_config
from infogan_dist.config.schema import Config
from infogan_dist.errors import ConfigError
from infogan_dist.model.latents import Latents, LatentSpec
from infogan_dist.model.networks import (
    ClusteredCode,
    Discriminator,
    Generator,
    RecognitionNetwork,
    build_classifier,
    build_networks,
    posterior_params,
)
from infogan_dist.runtime import checkpoint
from infogan_dist.runtime.pictures import generate_images, picture_latents


@dataclass(frozen=True)
class TrainedModel:
    """A trained generator with its recognition network, on the CPU, in evaluation mode.

    Attributes:
        step: number of training steps.
        config: the run's.
        spec: the latent codes.
        generator: the averaged generator.
        discriminator, recognition: D, whose trunk Q shares, and Q.
        clustered: the code that a classifier infers instead of Q; None without one.
    """

    step: int
    config: Config
    spec: LatentSpec
    generator: Generator
    discriminator: Discriminator
    recognition: RecognitionNetwork
    clustered: ClusteredCode | None = None

    def sample(self, count: int, seed: int = 0, codes: Mapping[str, str] | None = None) -> Latents:
        """Return draws from the prior.

        Args:
            count: their number.
            seed: the same seed gives the same draws.
            codes: values for some variables, as on the command line: `{"digit": "3", "style.0": "-0.5"}`.

        Raises:
            ConfigError: an unknown variable, or a value outside its prior's range.
        """
        return self.spec.with_values(picture_latents(self.spec, seed, count), codes or {})

    def traverse(
        self,
        variable: str,
        rows: int,
        columns: int = 10,
        seed: int = 0,
        codes: Mapping[str, str] | None = None,
    ) -> tuple[Latents, int]:
        """Return latents of a grid in which one variable varies along each row.

        Args:
            variable: the variable's name.
            rows: number of rows, each with noise and other codes of its own.
            columns: values of a continuous variable; of a discrete one, all values are taken.
            seed, codes: as of `sample`.

        Returns:
            The latents, row by row, and the number of columns.

        Raises:
            ConfigError: an unknown variable or value, or `codes` fixes the traversed variable.
        """
        fixed = codes or {}
        if self.spec.variable(variable) in [self.spec.variable(name) for name in fixed]:
            raise ConfigError(f"traverse={variable}: codes.{variable} is fixed too; leave one out")
        latents, columns = self.spec.traversal(self.sample(rows, seed), variable, columns)
        return self.spec.with_values(latents, fixed), columns

    def generate(self, latents: Latents) -> Tensor:
        """Return G's images [N, C, H, W] in [-1, 1]."""
        return generate_images(self.generator, latents)

    @torch.no_grad()
    def encode(self, images: Tensor) -> dict[str, Distribution]:
        """Return Q(c|x) by code, batch shape [N, V], of images [N, C, H, W] in [-1, 1]."""
        params = posterior_params(images, self.spec, self.discriminator, self.recognition, self.clustered)
        return self.spec.posteriors(params)


def load_model(path: str | PathLike, step: int | None = None) -> TrainedModel:
    """Load a trained model.

    Args:
        path: a run folder, or a checkpoint folder.
        step: a saved step of a run folder; None for the newest.

    Raises:
        ConfigError, DataError: there is no such checkpoint, or it does not fit its config.
    """
    saved = checkpoint.require(Path(path), step)
    config = load_config(saved.path / CONFIG_FILE)
    spec = LatentSpec(config.noise, config.codes)
    channels, height, width = saved.metadata["image_shape"]
    shape, categories = (channels, height, width), spec.clustered_categories(config.clustering)
    generator, discriminator, recognition = build_networks(
        config.networks, spec, shape, config.seed, categories
    )
    classifier = build_classifier(config.networks, categories, shape, config.seed)
    networks = {"generator_ema": generator, "discriminator": discriminator, "recognition": recognition}
    networks |= {"classifier_ema": classifier} if classifier else {}
    for name, network in networks.items():
        checkpoint.load_network(saved, name, network)
        network.eval().requires_grad_(False)
    clustered = ClusteredCode(config.clustering.code, classifier) if classifier else None
    return TrainedModel(saved.step, config, spec, generator, discriminator, recognition, clustered)
