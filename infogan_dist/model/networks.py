"""Generator, discriminator and recognition network, each built from its layer table in the config."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from infogan_dist.config.schema import NetworksConfig
from infogan_dist.errors import ConfigError
from infogan_dist.model.latents import LatentSpec
from infogan_dist.model.layers import Shape, stack
from infogan_dist.rng import torch_seed

PROJECTION_STD = 0.02
Network = TypeVar("Network", bound=nn.Module)


class Generator(nn.Module):
    """G: latents [N, width] to images [N, C, H, W]; in [-1, 1] where the table ends in tanh."""

    def __init__(self, config: NetworksConfig, spec: LatentSpec, image_shape: Shape):
        super().__init__()
        layers, shape = stack("networks.generator", config.generator, config, (spec.width,), image_shape)
        if shape != image_shape:
            raise ConfigError(
                f"networks.generator: generates images {list(shape)} (channels, height, width), but the "
                f"shards contain {list(image_shape)}; change the table, or create shards of that size"
            )
        self.layers = layers

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


class Discriminator(nn.Module):
    """D: images [N, C, H, W] to the trunk's features [N, ...] and the logits of being real [N].

    With `categories` the logit depends on the image's category as well, by an inner product of the features
    and a vector of each category (Miyato & Koyama 2018, "cGANs with projection discriminator", eq. 3).
    """

    def __init__(self, config: NetworksConfig, image_shape: Shape, categories: int = 0):
        super().__init__()
        self.trunk, self.features = stack(
            "networks.discriminator", config.discriminator, config, image_shape, image_shape
        )
        self.logit = nn.Linear(math.prod(self.features), 1)
        self.projection = None
        if categories:
            self.projection = nn.Linear(categories, math.prod(self.features), bias=False)
            # With torch's larger weights the category would outweigh the image at first.
            nn.init.normal_(self.projection.weight, 0.0, PROJECTION_STD)

    def forward(self, images: Tensor, category: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return features and logits; `category` is one-hot [N, categories]."""
        features = self.trunk(images)
        flat = features.flatten(1)
        logits = self.logit(flat)[:, 0]
        if self.projection is not None and category is not None:
            logits = logits + (self.projection(category.to(flat.dtype)) * flat).sum(1)
        return features, logits


class RecognitionNetwork(nn.Module):
    """Q: the trunk's features to the parameters of Q(c|x) [N, spec.num_posterior_params]."""

    def __init__(self, config: NetworksConfig, spec: LatentSpec, features: Shape):
        super().__init__()
        self.layers, shape = stack("networks.recognition", config.recognition, config, features, features)
        self.output = nn.Linear(math.prod(shape), spec.num_posterior_params)

    def forward(self, features: Tensor) -> Tensor:
        return self.output(self.layers(features).flatten(1))


class Classifier(nn.Module):
    """Images [N, C, H, W] to the logits of their category [N, categories]."""

    def __init__(self, config: NetworksConfig, categories: int, image_shape: Shape):
        super().__init__()
        self.layers, shape = stack("networks.classifier", config.classifier, config, image_shape, image_shape)
        self.output = nn.Linear(math.prod(shape), categories)

    def features(self, images: Tensor) -> Tensor:
        """Return the last layer's output [N, D], in which similar images are neighbours."""
        return self.layers(images).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.features(images))


@dataclass(frozen=True)
class ClusteredCode:
    """A code whose posterior is that of a classifier, instead of Q's.

    Attributes:
        name: the code's.
        classifier: gives the logits of its categories.
    """

    name: str
    classifier: Classifier


def posterior_params(
    images: Tensor,
    spec: LatentSpec,
    discriminator: Discriminator,
    recognition: RecognitionNetwork,
    clustered: ClusteredCode | None = None,
) -> Tensor:
    """Return the parameters of Q(c|x), [N, spec.num_posterior_params], of images [N, C, H, W]."""
    params = recognition(discriminator(images)[0])
    if clustered is None:
        return params
    return spec.replace_params(params, clustered.name, clustered.classifier(images))


class DiscriminatorPart(nn.Module):
    """The module that the discriminator's update trains: trunk, logit, and Q under `q_step=discriminator`."""

    def __init__(self, discriminator: Discriminator, recognition: RecognitionNetwork | None, penalised: bool):
        super().__init__()
        self.discriminator, self.recognition, self.penalised = discriminator, recognition, penalised

    def forward(
        self,
        real: Tensor | None,
        fake: Tensor | None,
        real_category: Tensor | None = None,
        fake_category: Tensor | None = None,
        restyled: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return logits and, if Q belongs to this part, the parameters of Q(c|x) of generated images.

        Real and generated images pass in separate forwards, since batch norm must normalise each by itself;
        the gradients of both are reduced together.

        Args:
            real, fake: images [n, C, H, W]; one of them may be None.
            real_category, fake_category: one-hot [n, K], for a discriminator with categories.
            restyled: generated images with other values of the continuous codes, [n, C, H, W].

        Returns:
            `real_features` [n, ...], `real_logits` [n], `fake_logits` [n], `posterior_params` and
            `restyled_params` [n, num_posterior_params], as far as the images are given.
        """
        out: dict[str, Tensor] = {}
        # R1 and R2 need a second derivative, which a compiled network does not have.
        discriminate = self.discriminator.forward if self.penalised else self.discriminator
        if real is not None:
            out["real_features"], out["real_logits"] = discriminate(real, real_category)
        if fake is not None:
            features, out["fake_logits"] = discriminate(fake, fake_category)
            if self.recognition is not None:
                out["posterior_params"] = self.recognition(features)
            if self.recognition is not None and restyled is not None:
                out["restyled_params"] = self.recognition(self.discriminator(restyled)[0])
        elif self.recognition is not None:
            # Real images give Q no gradient, but DDP waits for a gradient of each parameter.
            zero = torch.stack([p.sum() for p in self.recognition.parameters()]).sum() * 0.0
            out["real_logits"] = out["real_logits"] + zero
        return out


class GeneratorPart(nn.Module):
    """The module that the generator's update trains: G, and Q under `q_step=generator`."""

    def __init__(self, generator: Generator, recognition: RecognitionNetwork | None):
        super().__init__()
        self.generator, self.recognition = generator, recognition

    def forward(self, latents: Tensor) -> Tensor:
        return self.generator(latents)


def build_networks(
    config: NetworksConfig, spec: LatentSpec, image_shape: Shape, seed: int, categories: int = 0
) -> tuple[Generator, Discriminator, RecognitionNetwork]:
    """Return the three networks with their initial weights, a pure function of the seed.

    Args:
        config: the layer tables.
        spec: the latent codes.
        image_shape: (channels, height, width).
        seed: the run's.
        categories: of the images, which D is given; 0: D is given the images alone.

    Raises:
        ConfigError: a layer table does not fit the images.
    """
    generator = _seeded(config, seed, "init/generator", lambda: Generator(config, spec, image_shape))
    discriminator = _seeded(
        config, seed, "init/discriminator", lambda: Discriminator(config, image_shape, categories)
    )
    features = discriminator.features
    recognition = _seeded(
        config, seed, "init/recognition", lambda: RecognitionNetwork(config, spec, features)
    )
    return generator, discriminator, recognition


def build_classifier(
    config: NetworksConfig, categories: int, image_shape: Shape, seed: int
) -> Classifier | None:
    """Return the classifier with its initial weights; None for no categories.

    Arguments and errors are those of `build_networks`.
    """
    if categories == 0:
        return None
    return _seeded(config, seed, "init/classifier", lambda: Classifier(config, categories, image_shape))


def _seeded(config: NetworksConfig, seed: int, purpose: str, create: Callable[[], Network]) -> Network:
    """Return a new network whose initial weights are a pure function of the seed and the purpose."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, purpose))
        network = create()
        if config.init_std is not None:
            _initialise(network, config.init_std)
        return network


def _initialise(network: nn.Module, std: float) -> None:
    """Set weights to N(0, std), biases to 0, normalisation to the identity (as in DCGAN)."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
