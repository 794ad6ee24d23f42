"""Sequences of layers from the tables of the config."""

import math

from torch import nn

from infogan_dist.config.schema import LayerConfig, NetworksConfig
from infogan_dist.errors import ConfigError

Shape = tuple[int, ...]  # of one sample: (features,) or (channels, height, width)


def stack(
    key: str, table: list[LayerConfig], config: NetworksConfig, shape: Shape, image_shape: Shape
) -> tuple[nn.Sequential, Shape]:
    """Return the table's layers in sequence, and the shape of their output."""
    modules: list[nn.Module] = []
    for i, layer in enumerate(table):
        where = f"{key}[{i}]"
        layers, shape = _layer(where, layer, shape, image_shape, table[i + 1 :])
        modules += layers
        for name in layer.then:
            modules.append(_following_layer(name, shape, config.slope))
            if name == "maxpool":
                shape = _halved(where, shape)
    return nn.Sequential(*modules), shape


def _layer(
    where: str, layer: LayerConfig, shape: Shape, image_shape: Shape, later: list[LayerConfig]
) -> tuple[list[nn.Module], Shape]:
    out = image_shape[0] if layer.out is None else layer.out
    # Batch norm subtracts the mean, and with it any bias before it.
    bias = layer.then[:1] not in (["batchnorm"], ["unit_batchnorm"])
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


def _halved(where: str, shape: Shape) -> Shape:
    """Return the shape after a max pooling of 2x2 pixels."""
    if len(shape) != 3 or min(shape[1:]) < 2:
        raise ConfigError(f"{where}.then: maxpool needs images of at least 2x2 pixels; remove it")
    return (shape[0], shape[1] // 2, shape[2] // 2)


def _following_layer(name: str, shape: Shape, slope: float) -> nn.Module:
    if name == "batchnorm":
        return nn.BatchNorm2d(shape[0]) if len(shape) == 3 else nn.BatchNorm1d(shape[0])
    if name == "unit_batchnorm":
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(math.prod(shape)), nn.Unflatten(1, shape))
    layers = {"relu": nn.ReLU(), "lrelu": nn.LeakyReLU(slope), "tanh": nn.Tanh(), "maxpool": nn.MaxPool2d(2)}
    return layers[name]
