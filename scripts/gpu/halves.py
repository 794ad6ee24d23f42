"""Gradients through global batch norm on two processes that share a device."""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infogan_dist.runtime.batch_norm import convert_to_global


def compare_with_one_process(folder: Path, device: str) -> float:
    """Return the largest difference from one process, relative to the largest gradient.

    Args:
        folder: for the processes' result.
        device: `cpu` or `cuda`.
    """
    with tempfile.NamedTemporaryFile() as rendezvous:
        arguments = (rendezvous.name + ".store", folder, device)
        torch.multiprocessing.spawn(_reduce_half_batch, arguments, nprocs=2)
    halves = torch.load(folder / "halves.pt", weights_only=True)
    network, images = _network_and_images(device)
    network(images).square().mean().backward()
    expected = _gradient(network)
    return float((halves - expected).abs().max() / expected.abs().max())


def _network_and_images(device: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 4, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(1352, 1)
    )
    return network.double().to(device), torch.randn(16, 1, 28, 28).double().to(device)


def _gradient(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).cpu()


def _reduce_half_batch(rank: int, store: str, folder: Path, device: str) -> None:
    """Compute the gradient of one half of the batch; the first process writes the mean of both."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    network, images = _network_and_images(device)
    convert_to_global(network)
    network(images[rank * 8 : rank * 8 + 8]).square().mean().backward()
    gradient = _gradient(network)
    dist.all_reduce(gradient)
    if rank == 0:
        torch.save(gradient / 2, folder / "halves.pt")
    dist.destroy_process_group()
