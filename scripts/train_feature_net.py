#!/usr/bin/env python
"""Train the package's feature network on MNIST, which takes a few minutes on one core.

    python scripts/train_feature_net.py --out infogan_dist/scores/mnist_features.safetensors

The MNIST files are downloaded, or read from a folder with `--from`. The network after the last epoch is
written: the test set selects nothing. Its accuracy on the test set is written to the same file. The same
machine, version of torch and number of threads give the same bytes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from infogan_dist import rng
from infogan_dist.console import exit_on_user_error, set_up_logging
from infogan_dist.creation.source import Source
from infogan_dist.creation.sources import mnist
from infogan_dist.data.images import to_float
from infogan_dist.files import atomic_write, report_unwritable
from infogan_dist.scores.features import FeatureNet

VERSION = 1  # of this script: increase it with each change of what it writes
SEED = 0
EPOCHS, BATCH_SIZE, LEARNING_RATE = 10, 100, 4e-3
MAX_ROTATION, MAX_SHIFT = 10.0, 2.0  # of the augmentation: degrees, pixels


def read_tensors(source: Source) -> tuple[Tensor, Tensor]:
    """Read all images, float32 [N, 1, 28, 28] in [-1, 1], and labels [N]."""
    images, labels = zip(*(source.read(i) for i in range(source.count)), strict=True)
    return to_float(torch.from_numpy(np.stack(images)), torch.float32), torch.tensor(labels)


def augment(images: Tensor, start: int) -> Tensor:
    """Rotate and shift each image by random amounts.

    Args:
        images: [N, 1, 28, 28] in [-1, 1].
        start: number of images that were augmented before, which selects the random numbers.
    """
    uniforms = torch.from_numpy(rng.uniforms(SEED, "augment", start, len(images), 3)).float() * 2 - 1
    angle = torch.deg2rad(uniforms[:, 0] * MAX_ROTATION)
    shift = uniforms[:, 1:] * MAX_SHIFT * 2 / images.shape[-1]  # affine_grid's images have a side length of 2
    cos, sin = angle.cos(), angle.sin()
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    # grid_sample pads with 0, which has to mean black.
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


@torch.no_grad()
def accuracy(network: FeatureNet, images: Tensor, labels: Tensor) -> float:
    """Return the share of the images that the network classifies correctly."""
    network.eval()
    predictions = torch.cat([network(part).argmax(1) for part in images.split(1000)])
    return float((predictions == labels).double().mean())


def train(images: Tensor, labels: Tensor, test_set: tuple[Tensor, Tensor]) -> tuple[FeatureNet, float]:
    """Train a network.

    Args:
        images: [N, 1, 28, 28] in [-1, 1].
        labels: [N].
        test_set: the same for the test images.

    Returns:
        The network and its accuracy on the test set.
    """
    torch.manual_seed(rng.torch_seed(SEED, "feature net"))
    network = FeatureNet()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    steps = len(images) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, EPOCHS * steps)
    test_accuracy = 0.0
    for epoch in range(EPOCHS):
        network.train()
        order = torch.from_numpy(rng.permutation(SEED, "order", epoch, len(images)))
        for step in range(steps):
            rows = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
            logits = network(augment(images[rows], (epoch * steps + step) * BATCH_SIZE))
            loss = F.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        test_accuracy = accuracy(network, *test_set)
        print(
            f"epoch {epoch + 1} of {EPOCHS}: accuracy {test_accuracy:.2%} on {len(test_set[1]):,} "
            "test images",
            flush=True,
        )
    return network, test_accuracy


def write_network(network: FeatureNet, metadata: dict[str, Any], path: Path) -> None:
    """Write the weights and their metadata to a safetensors file. Raises `DataError`."""
    with report_unwritable(path, "choose another file with --out"), atomic_write(path) as partial:
        # All metadata is in one entry: safetensors writes several in an order that changes from run to run.
        partial.write_bytes(save(network.state_dict(), {"about": json.dumps(metadata)}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--from", dest="source", type=Path, help="folder of the four IDX files [default: download them]"
    )
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    arguments = parser.parse_args()
    set_up_logging()
    torch.use_deterministic_algorithms(True)
    with exit_on_user_error():
        train_set, test_set = (read_tensors(mnist(arguments.source, split)) for split in ("train", "test"))
        network, test_accuracy = train(*train_set, test_set)
        metadata = {
            "data": "MNIST",
            "accuracy": test_accuracy,
            "train_images": len(train_set[0]),
            "test_images": len(test_set[0]),
            "seed": SEED,
            "script_version": VERSION,
        }
        write_network(network, metadata, arguments.out)
        print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes, accuracy {test_accuracy:.2%}")


if __name__ == "__main__":
    main()
