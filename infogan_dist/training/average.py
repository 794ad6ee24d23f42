"""The averaged generator, which draws the pictures and is scored by default."""

import torch
from torch import Tensor, nn


class WeightAverage:
    """Updates the exponential moving average of a network's weights.

    An average of batch norm's running statistics would be that of networks with other weights:
    `runtime.batch_norm.set_running_statistics` computes those of the averaged network before it is used.

    Args:
        average: the network that holds the average.
        network: the network that is trained.
        decay: largest decay per step.

    Attributes:
        weight: 1 - decay of the next update, [] on the device, where a CUDA graph reads it.
    """

    def __init__(self, average: nn.Module, network: nn.Module, decay: float):
        self._means: list[Tensor] = [*average.parameters()]
        self._values: list[Tensor] = [*network.parameters()]
        self._decay = decay
        self.weight = self._means[0].new_zeros(())

    def set_weight(self, step: int) -> None:
        """Set the weight for the update of a step, counted from 0.

        The decay starts low, so that the average soon forgets the initial weights.
        """
        self.weight.fill_(1 - min(self._decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def update(self, suppressed: Tensor) -> None:
        """Update the average, unless `suppressed`, bool [], is true."""
        change = torch._foreach_sub(self._values, self._means)
        torch._foreach_mul_(change, self.weight * ~suppressed)
        torch._foreach_add_(self._means, change)
