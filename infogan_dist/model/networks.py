"""Generator, discriminator and recognition network, each built from its layer table in the config."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from infogan_dist.config.schema import LayerConfig, NetworksConfig
from infogan_dist.errors import ConfigError
from infogan_dist.model.latents import LatentSpec
from infogan_dist.rng import torch_seed

Shape = tuple[int, ...]  # of one sample: (features,) or (channels, height, width)


class Generator(nn.Module):
    """G: latents [N, width] to images [N, C, H, W]; in [-1, 1] where the table ends in tanh."""

    def __init__(self, config: NetworksConfig, spec: LatentSpec, image_shape: Shape):
        super().__init__()
        layers, shape = _stack("networks.generator", config.generator, config, (spec.width,), image_shape)
        if shape != image_shape:
            raise ConfigError(
                f"networks.generator: generates images {list(shape)} (channels, height, width), but the "
                f"shards contain {list(image_shape)}; change the table, or create shards of that size"
            )
        self.layers = layers

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


class Discriminator(nn.Module):
    """D: images [N, C, H, W] to the trunk's features [N, ...] and the logits of being real [N]."""

    def __init__(self, config: NetworksConfig, image_shape: Shape):
        super().__init__()
        self.trunk, self.features = _stack(
            "networks.discriminator", config.discriminator, config, image_shape, image_shape
        )
        self.logit = nn.Linear(math.prod(self.features), 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(images)
        return features, self.logit(features.flatten(1))[:, 0]


class RecognitionNetwork(nn.Module):
    """Q: the trunk's features to the parameters of Q(c|x) [N, spec.num_posterior_params]."""

    def __init__(self, config: NetworksConfig, spec: LatentSpec, features: Shape):
        super().__init__()
        self.layers, shape = _stack("networks.recognition", config.recognition, config, features, features)
        self.output = nn.Linear(math.prod(shape), spec.num_posterior_params)

    def forward(self, features: Tensor) -> Tensor:
        return self.output(self.layers(features).flatten(1))


class DiscriminatorPart(nn.Module):
    """The module that the discriminator's update trains: trunk, logit, and Q under `q_step=discriminator`."""

    def __init__(self, discriminator: Discriminator, recognition: RecognitionNetwork | None, r1: bool):
        super().__init__()
        self.discriminator, self.recognition, self.r1 = discriminator, recognition, r1

    def forward(self, real: Tensor | None, fake: Tensor | None) -> dict[str, Tensor]:
        """Return logits and, if Q belongs to this part, the parameters of Q(c|x) of generated images.

        Real and generated images pass in separate forwards, since batch norm must normalise each by itself;
        the gradients of both are reduced together.

        Args:
            real, fake: images [n, C, H, W]; one of them may be None.

        Returns:
            `real_features` [n, ...], `real_logits` [n], `fake_logits` [n], `posterior_params`
            [n, num_posterior_params], as far as the images are given.
        """
        out: dict[str, Tensor] = {}
        if real is not None:
            # R1 needs a second derivative, which a compiled network does not have.
            discriminate = self.discriminator.forward if self.r1 else self.discriminator
            out["real_features"], out["real_logits"] = discriminate(real)
        if fake is not None:
            features, out["fake_logits"] = self.discriminator(fake)
            if self.recognition is not None:
                out["posterior_params"] = self.recognition(features)
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
    config: NetworksConfig, spec: LatentSpec, image_shape: Shape, seed: int
) -> tuple[Generator, Discriminator, RecognitionNetwork]:
    """Return the three networks with their initial weights, a pure function of the seed.

    Args:
        config: the layer tables.
        spec: the latent codes.
        image_shape: (channels, height, width).
        seed: the run's.

    Raises:
        ConfigError: a layer table does not fit the images.
    """

    def seeded(purpose: str, create: Callable[[], nn.Module]) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(seed, purpose))
            network = create()
            _initialise(network, config.init_std)
            return network

    generator = seeded("init/generator", lambda: Generator(config, spec, image_shape))
    discriminator = seeded("init/discriminator", lambda: Discriminator(config, image_shape))
    assert isinstance(generator, Generator)
    assert isinstance(discriminator, Discriminator)
    features = discriminator.features
    recognition = seeded("init/recognition", lambda: RecognitionNetwork(config, spec, features))
    assert isinstance(recognition, RecognitionNetwork)
    return generator, discriminator, recognition


def _initialise(network: nn.Module, std: float) -> None:
    """Set weights to N(0, std), biases to 0, normalisation to the identity (as in DCGAN)."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _stack(
    key: str, table: list[LayerConfig], config: NetworksConfig, shape: Shape, image_shape: Shape
) -> tuple[nn.Sequential, Shape]:
    """Return the table's layers in sequence, and the shape of their output."""
    modules: list[nn.Module] = []
    for i, layer in enumerate(table):
        where = f"{key}[{i}]"
        layers, shape = _layer(where, layer, shape, image_shape, table[i + 1 :])
        modules += layers
        modules += [_following_layer(name, shape, config.slope) for name in layer.then]
    return nn.Sequential(*modules), shape


def _layer(
    where: str, layer: LayerConfig, shape: Shape, image_shape: Shape, later: list[LayerConfig]
) -> tuple[list[nn.Module], Shape]:
    out = image_shape[0] if layer.out is None else layer.out
    # Batch norm subtracts the mean, and with it any bias before it.
    bias = "batchnorm" not in layer.then[:1]
    if layer.kind == "dense":
        flat = [nn.Flatten()] if len(shape) > 1 else []
        target = (out, *_grid(where, image_shape, later)) if layer.grid else (out,)
        unflat = [nn.Unflatten(1, target)] if layer.grid else []
        return [*flat, nn.Linear(math.prod(shape), math.prod(target), bias=bias), *unflat], target
    if len(shape) != 3:
        raise ConfigError(
            f"{where}: a {layer.kind} needs an image; put a dense layer with grid: true before it"
        )
    create = _conv if layer.kind == "conv" else _deconv
    return create(where, layer, shape, out, bias)


def _conv(
    where: str, layer: LayerConfig, shape: Shape, out: int, bias: bool
) -> tuple[list[nn.Module], Shape]:
    """Return a convolution whose output side is input side / stride, rounded up."""
    sides = tuple(-(-side // layer.stride) for side in shape[1:])
    pads = [max((o - 1) * layer.stride + layer.kernel - i, 0) for o, i in zip(sides, shape[1:], strict=True)]
    conv: dict = {"kernel_size": layer.kernel, "stride": layer.stride, "bias": bias}
    if all(p % 2 == 0 for p in pads):
        return [nn.Conv2d(shape[0], out, padding=(pads[0] // 2, pads[1] // 2), **conv)], (out, *sides)
    height, width = pads
    pad = nn.ZeroPad2d((width // 2, width - width // 2, height // 2, height - height // 2))
    return [pad, nn.Conv2d(shape[0], out, **conv)], (out, *sides)


def _deconv(
    where: str, layer: LayerConfig, shape: Shape, out: int, bias: bool
) -> tuple[list[nn.Module], Shape]:
    """Return a transposed convolution whose output side is input side * stride."""
    extra = layer.kernel - layer.stride
    if extra < 0:
        raise ConfigError(
            f"{where}.kernel: {layer.kernel} leaves gaps at stride {layer.stride}; use {layer.stride} or more"
        )
    # The surplus is cropped evenly from both sides; an odd one takes one more row and column at the end.
    deconv = nn.ConvTranspose2d(shape[0], out, layer.kernel, layer.stride, padding=extra // 2, bias=bias)
    crop = [nn.ZeroPad2d((0, -1, 0, -1))] if extra % 2 else []
    return [deconv, *crop], (out, shape[1] * layer.stride, shape[2] * layer.stride)


def _grid(where: str, image_shape: Shape, later: list[LayerConfig]) -> Shape:
    """Return the height and width from which the later deconvs reach the image's size."""
    scale = math.prod(layer.stride for layer in later if layer.kind == "deconv")
    if any(side % scale for side in image_shape[1:]):
        raise ConfigError(
            f"{where}.grid: images of {image_shape[1]}x{image_shape[2]} cannot be reached by strides that "
            f"multiply to {scale}; create shards whose sides are multiples of {scale}"
        )
    return tuple(side // scale for side in image_shape[1:])


def _following_layer(name: str, shape: Shape, slope: float) -> nn.Module:
    if name == "batchnorm":
        return nn.BatchNorm2d(shape[0]) if len(shape) == 3 else nn.BatchNorm1d(shape[0])
    return {"relu": nn.ReLU(), "lrelu": nn.LeakyReLU(slope), "tanh": nn.Tanh()}[name]
