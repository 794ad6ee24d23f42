"""The networks that infer codes from images, with a choice of batch norm's statistics."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from infogan_dist.data.finite import CHUNK_SIZE
from infogan_dist.model.latents import LatentSpec
from infogan_dist.model.networks import ClusteredCode, Discriminator, RecognitionNetwork, posterior_params
from infogan_dist.scores.distributed_map import DistributedMap

RECALIBRATION_IMAGES = 10_000  # that the statistics of batch norm are recomputed from, at most


@dataclass(frozen=True)
class CodeReader:
    """D's trunk and Q, which together infer codes from images, in evaluation mode.

    Attributes:
        discriminator: D, whose trunk computes Q's features.
        recognition: Q.
        suffix: of the names of scores that are computed with these statistics.
        batch_norm: origin of the statistics of batch norm, for protocols.
        spec: the latent codes.
        clustered: a code that a classifier infers instead, or None. The classifier's batch norm has the
            statistics of real images already.
    """

    discriminator: Discriminator
    recognition: RecognitionNetwork
    suffix: str
    batch_norm: str
    spec: LatentSpec
    clustered: ClusteredCode | None = None

    @torch.no_grad()
    def posterior_params(self, images: Tensor) -> Tensor:
        """Return the parameters of Q(c|x), [n, spec.num_posterior_params].

        Args:
            images: [n, C, H, W] in [-1, 1].
        """
        return posterior_params(images, self.spec, self.discriminator, self.recognition, self.clustered)

    def batch_norms(self) -> list[_BatchNorm]:
        """Return the batch norm layers of both networks."""
        networks = (self.discriminator, self.recognition)
        return [m for network in networks for m in network.modules() if isinstance(m, _BatchNorm)]

    def recalibrated(
        self,
        sizes: list[int],
        chunk: Callable[[int], Tensor],
        images: str,
        distributed_map: DistributedMap,
    ) -> "CodeReader | None":
        """Return a copy whose batch norm has the statistics of given images, instead of those of training.

        They are the mean, over the images, of the statistics of each chunk, which is normalised by its own.
        At most the first `RECALIBRATION_IMAGES` images are used, so their order must be random.

        Args:
            sizes: number of images of each chunk.
            chunk: returns the images of a chunk, [n, C, H, W] in [-1, 1].
            images: kind of the images, for protocols.
            distributed_map: divides the chunks among the processes.

        Returns:
            The copy; None where there is no batch norm, or where no chunk has more than one image.
        """
        # A batch of one image has no variance.
        chunks = [i for i, size in enumerate(sizes) if size > 1][: RECALIBRATION_IMAGES // CHUNK_SIZE]
        if not self.batch_norms() or not chunks:
            return None
        weights = [sizes[i] for i in chunks]
        reader = CodeReader(
            copy.deepcopy(self.discriminator),
            copy.deepcopy(self.recognition),
            "_recalibrated",
            f"recalibrated on {sum(weights):,} {images}",
            self.spec,
            self.clustered,
        )
        _set_statistics(reader, weights, lambda k: chunk(chunks[k]), distributed_map)
        return reader


def _set_statistics(
    reader: CodeReader, sizes: list[int], chunk: Callable[[int], Tensor], distributed_map: DistributedMap
) -> None:
    """Set batch norm's statistics to the mean of those of the chunks, weighted by their sizes."""
    layers = reader.batch_norms()
    statistics = [b for layer in layers for b in (layer.running_mean, layer.running_var) if b is not None]
    for layer in layers:
        layer.momentum = 1.0  # the running statistics are then those of the last batch alone
        layer.train()

    def task(i: int) -> np.ndarray:
        reader.posterior_params(chunk(i))
        return torch.cat([b.double() for b in statistics]).cpu().numpy()

    table = distributed_map(len(sizes), sum(b.numel() for b in statistics), task)
    mean = torch.from_numpy(np.average(table, axis=0, weights=sizes))
    for layer in layers:
        layer.eval()
    for buffer, values in zip(statistics, mean.split([b.numel() for b in statistics]), strict=True):
        buffer.copy_(values)
