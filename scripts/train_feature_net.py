#!/usr/bin/env python
"""Trains the package's own feature network on MNIST, in a few minutes on one core.

    python scripts/train_feature_net.py --out infogan_dist/scores/mnist_features.safetensors

The files are downloaded, or taken from a folder with `--from`. What is written is the network as the last
epoch left it: the test set chooses nothing. Its accuracy there is written into the file. The same machine,
torch and number of threads give the same bytes.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from infogan_dist import rng
from infogan_dist.console import exit_on_user_error
from infogan_dist.data.sources import Source, mnist
from infogan_dist.errors import DataError
from infogan_dist.scores.features import FeatureNet

VERSION = 1  # of this script: raise it with each change of what it writes
SEED = 0
EPOCHS, BATCH, RATE = 10, 100, 4e-3
TURN, SHIFT = 10.0, 2.0  # of the augmentation, at most: degrees, pixels


def tensors(source: Source) -> tuple[Tensor, Tensor]:
    """All images, float32 [N, 1, 28, 28] in [-1, 1], and labels [N]."""
    images, labels = zip(*(source.read(i) for i in range(source.count)), strict=True)
    return torch.from_numpy(np.stack(images)).float() / 127.5 - 1, torch.tensor(labels)


def augmented(images: Tensor, start: int) -> Tensor:
    """Each image turned and shifted a little; `start` counts the images seen before."""
    drawn = torch.from_numpy(rng.uniforms(SEED, "augment", start, len(images), 3)).float() * 2 - 1
    angle = torch.deg2rad(drawn[:, 0] * TURN)
    shift = drawn[:, 1:] * SHIFT * 2 / images.shape[-1]  # the image's sides are 2 long
    cos, sin = angle.cos(), angle.sin()
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    places = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, places, align_corners=False) - 1  # beyond the edge it is black


@torch.no_grad()
def accuracy(network: FeatureNet, images: Tensor, labels: Tensor) -> float:
    network.eval()
    guesses = torch.cat([network(part).argmax(1) for part in images.split(1000)])
    return float((guesses == labels).double().mean())


def train(images: Tensor, labels: Tensor, test: tuple[Tensor, Tensor]) -> tuple[FeatureNet, float]:
    """A trained network and its accuracy on the test set."""
    torch.manual_seed(rng.torch_seed(SEED, "feature net"))
    network = FeatureNet()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, EPOCHS * steps)
    reached = 0.0
    for epoch in range(EPOCHS):
        network.train()
        order = torch.from_numpy(rng.permutation(SEED, "order", epoch, len(images)))
        for step in range(steps):
            rows = order[step * BATCH : (step + 1) * BATCH]
            logits = network(augmented(images[rows], (epoch * steps + step) * BATCH))
            loss = F.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        reached = accuracy(network, *test)
        print(
            f"epoch {epoch + 1} of {EPOCHS}: accuracy {reached:.2%} on {len(test[0]):,} test images",
            flush=True,
        )
    return network, reached


def write(network: FeatureNet, about: dict[str, Any], path: Path) -> None:
    """The weights and what is said of them, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        # In one entry: safetensors writes several in an order that changes from run to run.
        part.write_bytes(save(network.state_dict(), {"about": json.dumps(about)}))
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error}); name another place with --out") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--from", dest="source", type=Path, help="folder of the four IDX files [else they are downloaded]"
    )
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    with exit_on_user_error():
        train_set, test_set = (tensors(mnist(arguments.source, split)) for split in ("train", "test"))
        network, reached = train(*train_set, test_set)
        about = {
            "data": "MNIST",
            "accuracy": reached,
            "train_images": len(train_set[0]),
            "test_images": len(test_set[0]),
            "seed": SEED,
            "script_version": VERSION,
        }
        write(network, about, arguments.out)
        print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes, accuracy {reached:.2%}")


if __name__ == "__main__":
    main()
