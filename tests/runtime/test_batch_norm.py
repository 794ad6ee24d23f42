"""Batch norm over the images of all processes, against torch's batch norm on their union."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from infogan_dist.runtime.batch_norm import convert_to_global, untracked
from tests.runtime.ranks import on_ranks

ROWS = 12  # divided by every number of processes below
# Sums over processes run in another order than over the union. Values are about 1, and rounded to 1e-16.
ROUNDING = 1e-13


def network() -> nn.Sequential:
    """Return a network with batch norm after a convolution and after a dense layer."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(36, 5),
        nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1),
    ).double()  # fmt: skip
    for layer in layers:
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(layer.weight, 1, 0.3)
            nn.init.normal_(layer.bias)
    return layers


class RealAndFake(nn.Module):
    """Both kinds of images in one forward, as in a discriminator's update."""

    def __init__(self):
        super().__init__()
        self.layers = network()

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        return self.layers(real), self.layers(fake)


def images(kind: int) -> Tensor:
    generator = torch.Generator().manual_seed(kind)
    return torch.randn(ROWS, 1, 5, 5, generator=generator, dtype=torch.float64) * (1 + kind) + 3 * kind


def results(module: nn.Module, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """Return outputs, the gradient of the real images, and the gradients of a loss with an R1 penalty.

    The loss is a mean over rows, as each process computes it, so that the mean over processes is that of the
    union. The penalty differentiates the sum of the logits of all processes.
    """
    real = real.clone().requires_grad_()
    real_logits, fake_logits = module(real, fake)
    (image_gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    penalty = image_gradient.square().flatten(1).sum(1).mean()
    loss = nn.functional.softplus(-real_logits).mean() + fake_logits.square().mean() + penalty
    loss.backward()
    state = {k.removeprefix("module."): v for k, v in module.state_dict().items()}
    gradients = {k.removeprefix("module."): p.grad for k, p in module.named_parameters()}
    return {
        "real": real_logits.detach(),
        "fake": fake_logits.detach(),
        "image gradient": image_gradient.detach(),
        **{f"gradient of {k}": g for k, g in gradients.items() if g is not None},
        **{k: v for k, v in state.items() if "running" in k or "batches" in k},
    }


def on_slice() -> dict[str, Any]:
    dist.init_process_group("gloo")
    module = RealAndFake()
    convert_to_global(module)
    wrapped = DistributedDataParallel(module, broadcast_buffers=False)
    rows = slice(
        dist.get_rank() * ROWS // dist.get_world_size(), (dist.get_rank() + 1) * ROWS // dist.get_world_size()
    )
    return {k: v.tolist() for k, v in results(wrapped, images(0)[rows], images(1)[rows]).items()}


@pytest.mark.parametrize("world", [2, 3])
def test_processes_equal_one_batch_norm_on_the_union(world: int):
    expected = results(RealAndFake(), images(0), images(1))
    answers = on_ranks(world, on_slice)
    for name, value in expected.items():
        if name in ("real", "fake", "image gradient"):
            whole = torch.cat([torch.tensor(a[name], dtype=torch.float64) for a in answers])
            torch.testing.assert_close(
                whole, value, rtol=ROUNDING, atol=ROUNDING, msg=lambda m, n=name: f"{n}: {m}"
            )
        else:
            for answer in answers:
                own = torch.tensor(answer[name], dtype=value.dtype)
                torch.testing.assert_close(
                    own, value, rtol=ROUNDING, atol=ROUNDING, msg=lambda m, n=name: f"{n}: {m}"
                )


def far_from_zero(offset: float) -> list[list[float]]:
    dist.init_process_group("gloo")
    layers = nn.Sequential(nn.BatchNorm1d(3))
    convert_to_global(layers)
    rows = torch.randn(32, 3, generator=torch.Generator().manual_seed(0)) + offset
    return layers(rows[dist.get_rank() :: 2]).tolist()


def test_means_far_from_zero_cost_no_precision():
    """At 10,000 standard deviations from 0 the difference of squared moments in fp32 has no correct digit."""
    offset = 1e4
    outputs = on_ranks(2, far_from_zero, offset)
    rows = torch.randn(32, 3, generator=torch.Generator().manual_seed(0)) + offset
    expected = nn.BatchNorm1d(3).double()(rows.double())
    for rank, output in enumerate(outputs):
        # The rows themselves are rounded to 1e-3; of the mean of a slice, fp32 keeps as much.
        torch.testing.assert_close(torch.tensor(output).double(), expected[rank::2], rtol=0, atol=2e-3)


def modes() -> dict[str, Any]:
    dist.init_process_group("gloo")
    layers = nn.Sequential(nn.BatchNorm2d(2))
    keys = list(layers.state_dict())
    convert_to_global(layers)
    before = [b.clone() for b in layers.buffers()]
    x = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(dist.get_rank()))
    with untracked(layers):
        layers(x)
    untouched = all(torch.equal(a, b) for a, b in zip(before, layers.buffers(), strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        low = layers(x.bfloat16())
    plain = nn.BatchNorm2d(2)
    plain.load_state_dict(layers[0].state_dict())
    layers.eval()
    # Only one process: in evaluation no process waits for another one.
    evaluates = dist.get_rank() == 1 or torch.equal(layers(x), plain.eval()(x))
    return {
        "keys": list(layers.state_dict()) == keys,
        "untouched": untouched,
        "bf16": str(low.dtype),
        "evaluates": evaluates,
    }


def test_state_modes_and_mixed_precision_are_those_of_torch():
    for answer in on_ranks(2, modes):
        assert answer == {"keys": True, "untouched": True, "bf16": "torch.bfloat16", "evaluates": True}
