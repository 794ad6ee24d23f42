"""Batch norm in training: which forwards change running statistics, and batches that are too small for it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from infogan_dist.config.batch_share import BatchShare
from infogan_dist.errors import ConfigError


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Within the block, the networks' parameters get no gradients, and running statistics do not change."""
    parameters = [p for n in networks for p in n.parameters() if p.requires_grad]
    with untracked(*networks):
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)


@contextmanager
def untracked(*networks: nn.Module) -> Iterator[None]:
    """Within the block, batch norm normalises by the batch, but its running statistics do not change."""
    norms = [m for n in networks for m in n.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def refuse_single_images(share: BatchShare, networks: Iterable[nn.Module]) -> None:
    """Refuse batches of one image, for which the variance of a dense layer's output is not defined.

    Raises:
        ConfigError: a network has batch norm after a dense layer, and a process has one image at a time.
    """
    micro, train = next(share.micro_batches()), share.config.train
    modules = (m for network in networks for m in network.modules())
    count = min(micro.real_images, micro.fake_images)
    if count == 1 and any(isinstance(m, nn.BatchNorm1d) for m in modules):
        raise ConfigError(
            f"train.batch_size: {train.batch_size} leaves one image for batch norm in each of {share.world} "
            f"process(es) x {train.accumulation} micro-batch(es); use a larger batch, fewer processes or "
            "less accumulation"
        )
