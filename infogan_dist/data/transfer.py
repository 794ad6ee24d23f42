"""Copies of tensors from the host to a device."""

import torch
from torch import Tensor


def concatenate_on_device(parts: list[Tensor], device: torch.device) -> Tensor:
    """Concatenate tensors of the host along their first axis, on a device; the host does not wait for it.

    Args:
        parts: of one dtype, and of one shape but for the first axis.
        device: of the result.
    """
    if device.type == "cpu":
        return torch.cat(parts)
    # The copy is asynchronous only from page-locked memory. Its allocator gives a block out again only after
    # the copies from it have ended, so that a few blocks serve all batches in turn.
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    pinned = torch.empty(shape, dtype=parts[0].dtype, pin_memory=True)
    return torch.cat(parts, out=pinned).to(device, non_blocking=True)
