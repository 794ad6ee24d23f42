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

        Raises:
            ConfigError: the network fails on these images, or returns no row of finite features for each.
        """
        images = images.to(self.device)
        pixels = images if images.dtype == torch.uint8 else to_uint8(images)
        return _compute(f"scores.features: {self.name}", self.network, pixels, self.width)


def _compute(
    where: str, network: Callable[[Tensor], Tensor], images: Tensor, width: int | None = None
) -> Tensor:
    """Return a network's features.

    Args:
        where: the network, for error messages.
        network: maps uint8 images to features.
        images: uint8 [N, C, H, W].
        width: the required number of features; None: any number above 0.

    Raises:
        ConfigError: the network fails, or does not return N rows of `width` finite features.
    """
    try:
        result = network(images)
    except Exception as error:  # a program of the user: any exception is possible
        raise ConfigError(
            f"{where}: fails on images uint8 {[len(images), 3, *images.shape[2:]]} ({_last_line(error)}); "
            "name a network that accepts them"
        ) from None
    fits = result.ndim == 2 and len(result) == len(images) and result.shape[1] == (width or result.shape[1])
    if not fits or result.shape[1] == 0 or not result.isfinite().all():
        raise ConfigError(
            f"{where}: returns {list(result.shape)} for {len(images)} images, or numbers that are not "
            "finite; name a network that returns a row of finite features per image"
        )
    return result


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

    with torch.no_grad():
        trial = _compute(key, features, torch.zeros(2, *image_shape, dtype=torch.uint8, device=device))
    width = trial.shape[1]
    return Features(path.stem, _fingerprint(path), width, {}, device, features)


def _last_line(error: Exception) -> str:
    """Return the last line of an error of torch; the other lines are a traceback of the network's program."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def features_fingerprint(choice: str | None) -> str | None:
    """Return the SHA-256 of the file of a config's `scores.features`; None if the file cannot be read."""
    try:
        return _fingerprint(DIGITS if choice is None else Path(choice))
    except OSError:
        return None


def _fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
