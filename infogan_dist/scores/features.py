"""Networks that compute the features whose distributions fidelity compares."""

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from infogan_dist.data.images import to_float, to_uint8
from infogan_dist.errors import ConfigError

# Weights of the package's network; scripts/train_feature_net.py writes them.
DIGITS = Path(__file__).with_name("mnist_features.safetensors")
DIGIT_SHAPE = (1, 28, 28)


class FeatureNet(nn.Module):
    """A small classifier of grey digits, from images [N, 1, 28, 28] in [-1, 1] to logits [N, 10].

    Attributes:
        width: number of features.
    """

    width = 64

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 3 * 3, self.width),
            nn.ReLU(),
        )
        self.logits = nn.Linear(self.width, 10)

    def features(self, images: Tensor) -> Tensor:
        """Return the last hidden layer, after its nonlinearity, [N, 64]."""
        return self.trunk(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.features(images))


@dataclass(frozen=True)
class Features:
    """A network whose features are compared.

    Attributes:
        name: for protocols.
        fingerprint: SHA-256 of its file; scores of different networks are not comparable.
        width: number of features per image.
        metadata: of its file; for the package's network: how it was trained, and its accuracy.
        device: the device that it computes on.
        network: maps images, uint8 [N, C, H, W] on that device, to float32 [N, width].
    """

    name: str
    fingerprint: str
    width: int
    metadata: dict[str, Any]
    device: torch.device
    network: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of images, float32 [N, width] on `device`.

        Args:
            images: [N, C, H, W], uint8, or in [-1, 1]. The latter are rounded to uint8, because the rounding
                of the real images alone would distinguish them from generated ones.
        """
        images = images.to(self.device)
        return self.network(images if images.dtype == torch.uint8 else to_uint8(images))


def load_features(choice: str | None, image_shape: tuple[int, int, int], device: torch.device) -> Features:
    """Load the network of a config's `scores.features`.

    Args:
        choice: None for the package's network for digits of 28x28, or a TorchScript file. Its network is
            called with RGB images, uint8 [N, 3, H, W], and with `return_features=True` if it has that
            argument, as the Inception network of the StyleGAN authors does; its result is flattened to [N,
            d]. TorchScript is a program: name only files that you trust.
        image_shape: (channels, height, width) of the images.
        device: the device that the network computes on.

    Returns:
        The network.

    Raises:
        ConfigError: the package's network does not fit the images; the file is missing, is not TorchScript,
            or does not map such images to rows of finite features.
    """
    if choice is not None:
        return _torchscript_features(Path(choice), image_shape, device)
    if image_shape != DIGIT_SHAPE:
        raise ConfigError(
            f"scores.features: the package's network is for digits of {list(DIGIT_SHAPE)}, the images are "
            f"{list(image_shape)} (channels, height, width); set scores.features=FILE, a TorchScript network"
        )
    network = FeatureNet()
    network.load_state_dict(load_file(DIGITS))
    network.eval().requires_grad_(False).to(device)
    with safe_open(DIGITS, "pt") as file:
        # The file has a single entry of metadata. Its key is not needed, and renaming it would change the
        # fingerprint of the file, which score files contain.
        (metadata,) = file.metadata().values()
    return Features(
        DIGITS.stem,
        _fingerprint(DIGITS),
        FeatureNet.width,
        json.loads(metadata),
        device,
        lambda images: network.features(to_float(images, torch.float32)),
    )


def _torchscript_features(path: Path, image_shape: tuple[int, int, int], device: torch.device) -> Features:
    key = f"scores.features={path}"
    if not path.is_file():
        raise ConfigError(f"{key}: no such file; name a TorchScript network")
    try:
        with warnings.catch_warnings():
            # The networks in wide use are TorchScript files, although torch deprecates the format.
            warnings.filterwarnings("ignore", r"`torch\.jit\.load` is", DeprecationWarning)
            network = torch.jit.load(path, map_location=device).eval()
        arguments = [a.name for a in network.forward.schema.arguments]
    except (RuntimeError, OSError, AttributeError) as error:
        raise ConfigError(
            f"{key}: not a TorchScript network ({_last_line(error)}); create one with torch.jit.save"
        ) from None
    options = {"return_features": True} if "return_features" in arguments else {}

    def features(images: Tensor) -> Tensor:
        return network(images.expand(-1, 3, -1, -1), **options).flatten(1).float()

    width = _feature_width(key, features, image_shape, device)
    return Features(path.stem, _fingerprint(path), width, {}, device, features)


@torch.no_grad()
def _feature_width(
    key: str, features: Callable[[Tensor], Tensor], image_shape: tuple[int, int, int], device: torch.device
) -> int:
    """Return the width of a network's features. Raises `ConfigError` if it fails on two images."""
    try:
        result = features(torch.zeros(2, *image_shape, dtype=torch.uint8, device=device))
    except Exception as error:  # a program of the user: any exception is possible
        raise ConfigError(
            f"{key}: fails on images uint8 {[2, 3, *image_shape[1:]]} ({_last_line(error)}); "
            "name a network that accepts them"
        ) from None
    if len(result) != 2 or not result.isfinite().all():
        raise ConfigError(
            f"{key}: returns {list(result.shape)} for 2 images, or numbers that are not finite; "
            "name a network that returns a row of finite features per image"
        )
    return result.shape[1]


def _last_line(error: Exception) -> str:
    """Return the last line of an error of torch; the other lines are a traceback of the network's program."""
    return str(error).strip().splitlines()[-1]


def _fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
