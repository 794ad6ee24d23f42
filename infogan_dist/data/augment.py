"""Random flips and shifts of real images, as pure functions of (seed, epoch, sample).

They do not depend on the number of processes, on caches, or on where a run was resumed.
"""

from itertools import accumulate

import torch
from torch import Tensor

from infogan_dist.config.schema import AugmentConfig
from infogan_dist.rng import uniforms

MOVES = 3  # numbers of an image: whether it is flipped, and the pixels by which it moves down and right


class Augmentation:
    """The random flips and shifts of a shard set's images.

    Args:
        config: which of them are used.
        seed: the run's.
        sizes: number of samples of each shard.
    """

    def __init__(self, config: AugmentConfig, seed: int, sizes: list[int]):
        self.config, self.seed, self.sizes = config, seed, sizes
        self.starts = list(accumulate(sizes, initial=0))

    def draw(self, epoch: int, shard: int) -> Tensor:
        """Return the moves of a shard's samples in an epoch, int64 [samples, 3], in the shard's order."""
        start, count = self.starts[shard], self.sizes[shard]
        table = torch.from_numpy(uniforms(self.seed, f"augment/{epoch}", start, count, MOVES))
        flips = (table[:, :1] < 0.5) & self.config.flip
        shifts = (table[:, 1:] * (2 * self.config.shift + 1)).floor() - self.config.shift
        return torch.cat([flips, shifts], 1).long()


def open_augmentation(config: AugmentConfig, seed: int, sizes: list[int]) -> Augmentation | None:
    """Return the augmentation of a config, None if it is off; see `Augmentation` for the arguments."""
    return Augmentation(config, seed, sizes) if config.flip or config.shift else None


def apply_moves(images: Tensor, moves: Tensor) -> Tensor:
    """Return images that are flipped horizontally and then shifted; pixels at the edge are repeated.

    Args:
        images: [N, C, H, W], of any dtype, on any device.
        moves: of `Augmentation.draw`, int64 [N, 3], on the same device.

    Returns:
        Of the same shape and dtype, contiguous.
    """
    count, _, height, width = images.shape
    flip, down, right = moves.unbind(1)
    device = images.device
    rows = (torch.arange(height, device=device) - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=device) - right[:, None]).clamp(0, width - 1)
    columns = torch.where(flip[:, None] > 0, width - 1 - columns, columns)
    index = torch.arange(count, device=device)[:, None, None]
    moved = images[index, :, rows[:, :, None], columns[:, None, :]]  # [N, H, W, C]
    return moved.permute(0, 3, 1, 2).contiguous()
