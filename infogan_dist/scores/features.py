"""Networks that turn images into the features whose distributions fidelity compares."""

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

from infogan_dist.errors import ConfigError

DIGITS = Path(__file__).with_name("mnist_features.safetensors")  # made by scripts/train_feature_net.py
DIGIT_SHAPE = (1, 28, 28)


class FeatureNet(nn.Module):
    """A small classifier of grey digits, images [N, 1, 28, 28] in [-1, 1] to logits [N, 10]."""

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
        """What the logits are made of: the last hidden layer, after its nonlinearity, [N, 64]."""
        return self.trunk(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.features(images))


@dataclass(frozen=True)
class Features:
    """A network whose features are compared.

    Attributes:
        name: what a report calls it.
        fingerprint: SHA-256 of its file; scores by different networks do not compare.
        width: features an image.
        about: what its file says of it; of the digits' network: how it was trained, its accuracy.
        device: where it computes.
        network: uint8 [N, C, H, W] on that device to float32 [N, width].
    """

    name: str
    fingerprint: str
    width: int
    about: dict[str, Any]
    device: torch.device
    network: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features, float32 [N, width] on `device`, of images [N, C, H, W], uint8 or in [-1, 1].

        Those in [-1, 1] are rounded to what an image file can hold: else the rounding of the real ones alone
        would set them apart.
        """
        images = images.to(self.device)
        if images.dtype != torch.uint8:
            images = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return self.network(images)


def load_features(choice: str | None, image_shape: tuple[int, int, int], device: torch.device) -> Features:
    """The network of a config's `scores.features`.

    Args:
        choice: None: the package's own, for digits of 28x28. Else a TorchScript file: it is given RGB images,
            uint8 [N, 3, H, W], and `return_features=True` where it takes that, as the Inception network of
            the StyleGAN authors does; what it returns is flattened to [N, d]. TorchScript is a program:
            name only files that you trust.
        image_shape: (channels, height, width) of the images.

    Raises:
        ConfigError: the digits' network does not fit the images; the file is missing, is not TorchScript, or
            does not turn such images into rows of finite features.
    """
    if choice is not None:
        return _torchscript(Path(choice), image_shape, device)
    if image_shape != DIGIT_SHAPE:
        raise ConfigError(
            f"scores.features: the package's network knows digits of {list(DIGIT_SHAPE)}, the images are "
            f"{list(image_shape)} (channels, height, width); give scores.features=FILE, a TorchScript network"
        )
    network = FeatureNet()
    network.load_state_dict(load_file(DIGITS))
    network.eval().requires_grad_(False).to(device)
    with safe_open(DIGITS, "pt") as file:
        about = json.loads(file.metadata()["about"])
    return Features(
        DIGITS.stem,
        _fingerprint(DIGITS),
        FeatureNet.width,
        about,
        device,
        lambda images: network.features(images.float() / 127.5 - 1),
    )


def _torchscript(path: Path, image_shape: tuple[int, int, int], device: torch.device) -> Features:
    where = f"scores.features={path}"
    if not path.is_file():
        raise ConfigError(f"{where}: no such file; name a TorchScript network")
    try:
        with warnings.catch_warnings():
            # The networks in wide use are TorchScript files, whatever torch plans for it.
            warnings.filterwarnings("ignore", r"`torch\.jit\.load` is", DeprecationWarning)
            network = torch.jit.load(path, map_location=device).eval()
        arguments = [a.name for a in network.forward.schema.arguments]
    except (RuntimeError, OSError, AttributeError) as error:
        raise ConfigError(
            f"{where}: not a TorchScript network ({_line(error)}); make one with torch.jit.save"
        ) from None
    options = {"return_features": True} if "return_features" in arguments else {}

    def features(images: Tensor) -> Tensor:
        return network(images.expand(-1, 3, -1, -1), **options).flatten(1).float()

    width = _try(where, features, image_shape, device)
    return Features(path.stem, _fingerprint(path), width, {}, device, features)


@torch.no_grad()
def _try(
    where: str, features: Callable[[Tensor], Tensor], image_shape: tuple[int, int, int], device: torch.device
) -> int:
    """Shows a network two images, so that one that does not suit is refused at once; returns the width."""
    try:
        found = features(torch.zeros(2, *image_shape, dtype=torch.uint8, device=device))
    except Exception as error:  # others wrote it: it may raise anything
        raise ConfigError(
            f"{where}: fails on images uint8 {[2, 3, *image_shape[1:]]} ({_line(error)}); "
            "name a network that takes them"
        ) from None
    if len(found) != 2 or not found.isfinite().all():
        raise ConfigError(
            f"{where}: makes {list(found.shape)} of 2 images, or not finite numbers; "
            "name a network that makes a row of features of each image"
        )
    return found.shape[1]


def _line(error: Exception) -> str:
    """The last line of what torch says: before it come traces of the network's own program."""
    return str(error).strip().splitlines()[-1]


def _fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
