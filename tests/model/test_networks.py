import pytest
import torch
from torch import nn

from infogan_dist.config.codes import CodeConfig
from infogan_dist.config.load import read_config
from infogan_dist.config.schema import LayerConfig, NetworksConfig
from infogan_dist.errors import ConfigError
from infogan_dist.model.latents import LatentSpec
from infogan_dist.model.networks import build_networks

PAPER, TUTORIAL = "configs/mnist.yaml", "configs/mnist_tutorial.yaml"


def networks(config_file: str, shape: tuple[int, int, int] = (1, 28, 28), *overrides: str):
    config = read_config([config_file, *overrides])
    spec = LatentSpec(config.noise, config.codes)
    return build_networks(config.networks, spec, shape, config.seed), spec


def layers(network: nn.Module) -> list[tuple]:
    """Return (kind, out, kernel, stride) of each weighted layer, and the names of the following layers."""
    rows: list[tuple] = []
    for m in network.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            rows.append((type(m).__name__, m.out_channels, m.kernel_size[0], m.stride[0]))
        elif isinstance(m, nn.Linear):
            rows.append(("Linear", m.out_features))
        elif isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            rows.append(("norm",))
        elif isinstance(m, (nn.ReLU, nn.LeakyReLU, nn.Tanh)):
            rows.append((type(m).__name__, getattr(m, "negative_slope", None)))
    return rows


def test_the_paper_s_preset_is_its_appendix_c1():
    (generator, discriminator, recognition), spec = networks(PAPER)
    assert spec.width == 74
    relu, lrelu, norm = ("ReLU", None), ("LeakyReLU", 0.1), ("norm",)
    assert layers(generator) == [
        ("Linear", 1024), norm, relu,
        ("Linear", 7 * 7 * 128), norm, relu,
        ("ConvTranspose2d", 64, 4, 2), norm, relu,
        ("ConvTranspose2d", 1, 4, 2), ("Tanh", None),
    ]  # fmt: skip
    assert layers(discriminator) == [
        ("Conv2d", 64, 4, 2), lrelu,
        ("Conv2d", 128, 4, 2), norm, lrelu,
        ("Linear", 1024), norm, lrelu,
        ("Linear", 1),
    ]  # fmt: skip
    # 10 logits, and a mean and a log deviation of each of two uniform codes
    assert layers(recognition) == [("Linear", 128), norm, lrelu, ("Linear", 14)]


def test_the_tutorial_s_preset_is_the_tutorial():
    (generator, discriminator, recognition), spec = networks(TUTORIAL)
    assert spec.width == 72
    relu, lrelu, norm = ("ReLU", None), ("LeakyReLU", 0.1), ("norm",)
    assert layers(generator) == [
        ("Linear", 7 * 7 * 512), relu, norm,
        ("Conv2d", 128, 4, 1), relu, norm,
        ("ConvTranspose2d", 64, 4, 2), relu, norm,
        ("ConvTranspose2d", 1, 4, 2), ("Tanh", None),
    ]  # fmt: skip
    assert layers(discriminator) == [
        ("Conv2d", 64, 4, 2), lrelu,
        ("Conv2d", 128, 4, 2), lrelu, norm,
        ("Conv2d", 256, 4, 1), lrelu, norm,
        ("Linear", 1),
    ]  # fmt: skip
    assert layers(recognition) == [("Linear", 128), norm, lrelu, ("Linear", 10)]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 48)])
@pytest.mark.parametrize("preset", [PAPER, TUTORIAL, "configs/mnist5k.yaml"])
def test_a_preset_fits_other_images_and_a_batch_of_one(preset: str, shape: tuple[int, int, int]):
    (generator, discriminator, recognition), spec = networks(preset, shape)
    for network in (generator, discriminator, recognition):
        network.eval()
    images = generator(spec.sample(0, "x", 0, 1).vector)
    assert images.shape == (1, *shape)
    assert images.abs().max() <= 1
    features, logits = discriminator(images)
    assert logits.shape == (1,)
    assert recognition(features).shape == (1, spec.num_posterior_params)


def test_initial_weights_depend_on_the_seed_only():
    torch.manual_seed(123)
    a, _ = networks(PAPER)
    torch.rand(7)
    before = torch.get_rng_state()
    b, _ = networks(PAPER)
    assert torch.equal(torch.get_rng_state(), before)  # and the global generator is not advanced
    c, _ = networks(PAPER, (1, 28, 28), "seed=1")
    for same, other, differs in zip(a, b, c, strict=True):
        pairs = list(zip(same.parameters(), other.parameters(), differs.parameters(), strict=True))
        assert all(torch.equal(p, q) for p, q, _ in pairs)
        assert any(not torch.equal(p, r) for p, _, r in pairs)
    weight = next(a[0].parameters())
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("kernel", "stride"), [(4, 2), (4, 1), (3, 1), (3, 2), (5, 2), (2, 2), (1, 1), (5, 3)]
)
@pytest.mark.parametrize("side", [7, 12])
def test_sides_are_divided_and_multiplied_by_the_strides(kernel: int, stride: int, side: int):
    config = NetworksConfig(
        generator=[LayerConfig("dense", 2, grid=True), LayerConfig("deconv", None, kernel, stride)],
        discriminator=[LayerConfig("conv", 3, kernel, stride)],
    )
    spec = LatentSpec(2, {"c": CodeConfig("categorical", 3)})
    shape = (1, side * stride, side * stride)
    generator, discriminator, _ = build_networks(config, spec, shape, 0)
    assert generator(torch.zeros(2, 5)).shape == (2, *shape)
    assert discriminator(torch.zeros(2, *shape))[0].shape == (2, 3, side, side)


@pytest.mark.parametrize(
    ("shape", "override", "message"),
    [
        ((1, 30, 30), "seed=0", "multiples of 4"),
        ((1, 28, 28), "networks.generator=[{kind: deconv, out: 1}]", "grid: true"),
        ((1, 28, 28), "networks.generator=[{kind: dense, out: 3, grid: true}]", "but the shards contain"),
        (
            (1, 28, 28),
            "networks.generator=[{kind: dense, grid: true},{kind: deconv, stride: 7, kernel: 4}]",
            "7 or more",
        ),
    ],
)
def test_tables_that_do_not_fit_the_images_are_refused(
    shape: tuple[int, int, int], override: str, message: str
):
    with pytest.raises(ConfigError, match=message):
        networks(PAPER, shape, override)
