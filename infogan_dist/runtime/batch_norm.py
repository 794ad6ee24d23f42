"""Batch norm in training: over the images of all processes, and which forwards change running statistics."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from infogan_dist.config.batch_share import BatchShare
from infogan_dist.errors import ConfigError


class GlobalBatchNorm(_BatchNorm):
    """Batch norm whose statistics are those of the images of all processes (Ioffe & Szegedy 2015, alg. 1).

    With slices of equal size on the processes, outputs, gradients of any order and running statistics are
    those of torch's batch norm on the union of the slices, to rounding. Parameters and buffers have the same
    names. In training mode all processes must call it equally often.

    `nn.SyncBatchNorm` is not used: it waits for the host in each forward, does not run on a CPU, and cannot
    be differentiated twice, as R1 requires.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise features [n, C, ...], in training by the statistics over all processes."""
        if not self.training:
            return super().forward(input)
        # Under mixed precision only the output is rounded, as in torch's kernel.
        with torch.autocast(input.device.type, enabled=False):
            features = input.to(self.weight.dtype)
            variance, mean = torch.var_mean(features, [0, *range(2, features.dim())], correction=0)
            # In float64 the difference of the moments is exact enough, wherever the mean lies: one exchange
            # does instead of two.
            mean, variance = mean.double(), variance.double()
            moments = torch.stack([mean, variance + mean.square()])
            mean, mean_square = (AllReduce.apply(moments) / dist.get_world_size()).unbind()
            variance = mean_square - mean.square()
            self._update_running_statistics(mean, variance, features.numel() // features.shape[1])
            shape = (1, -1, *[1] * (features.dim() - 2))
            scale = self.weight * (variance + self.eps).rsqrt().to(self.weight.dtype)
            centred = features - mean.to(features.dtype).view(shape)
            return torch.addcmul(self.bias.view(shape), centred, scale.view(shape)).to(input.dtype)

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics towards those of a batch of `count` numbers per process and channel."""
        if not self.track_running_stats:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        total = count * dist.get_world_size()
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((variance * (total / (total - 1))).to(self.running_var.dtype), self.momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept features [n, C] and [n, C, ...], as of dense layers and of convolutions."""


class AllReduce(torch.autograd.Function):
    """The sum over the processes.

    Each process's result depends on all processes' inputs, so the gradient is a sum over the processes too,
    and so are gradients of higher order.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return AllReduce.apply(gradients[0])


def convert_to_global(network: nn.Module) -> None:
    """Replace the batch norm layers within a network by global ones, with the same parameters and buffers."""
    for name, child in network.named_children():
        if isinstance(child, _BatchNorm):
            layer = GlobalBatchNorm(child.num_features, child.eps, child.momentum)
            layer.weight, layer.bias = child.weight, child.bias
            layer.running_mean, layer.running_var = child.running_mean, child.running_var
            layer.num_batches_tracked = child.num_batches_tracked
            setattr(network, name, layer.train(child.training))
        else:
            convert_to_global(child)


def flatten_buffers(network: nn.Module) -> list[Tensor]:
    """Make a network's buffers views of one tensor for each data type, and return these tensors.

    Running statistics are copied before each step, in case it has to be taken back. A few large copies take
    less time than many small ones.
    """
    owners = [(m, name, b) for m in network.modules() for name, b in m.named_buffers(recurse=False)]
    flat: list[Tensor] = []
    for dtype in sorted({b.dtype for _, _, b in owners}, key=str):
        group = [owner for owner in owners if owner[2].dtype == dtype]
        flat.append(torch.cat([b.flatten() for _, _, b in group]))
        parts = flat[-1].split([b.numel() for _, _, b in group])
        for (module, name, buffer), part in zip(group, parts, strict=True):
            module.register_buffer(name, part.view_as(buffer))
    return flat


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


@torch.no_grad()
def set_running_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set a network's running statistics to their mean over batches of its inputs; it is left in evaluation.

    Running statistics of training lag behind the weights, and an average of the weights never had any.
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean
    network.train()
    for batch in batches if layers else ():
        network(batch)
    network.eval()
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def refuse_single_images(share: BatchShare, networks: Iterable[nn.Module]) -> None:
    """Refuse batches of one image, for which the variance of a dense layer's output is not defined.

    Raises:
        ConfigError: a network has batch norm after a dense layer, and a micro-batch has one image.
    """
    micro, train = next(share.micro_batches()), share.config.train
    modules = (m for network in networks for m in network.modules())
    count = min(micro.real_images, micro.fake_images) * share.world
    if count == 1 and any(isinstance(m, nn.BatchNorm1d) for m in modules):
        raise ConfigError(
            f"train.batch_size: {train.batch_size} leaves one image for batch norm in each of "
            f"{train.accumulation} micro-batch(es); use a larger batch or less accumulation"
        )
