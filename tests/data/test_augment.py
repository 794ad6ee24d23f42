"""Random flips and shifts are functions of (seed, epoch, sample) alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from infogan_dist.config.schema import AugmentConfig
from infogan_dist.data.augment import Augmentation, apply_moves, open_augmentation
from infogan_dist.data.loader import Loader
from infogan_dist.data.order import Order
from infogan_dist.data.resident import ResidentLoader
from infogan_dist.data.shards import load_manifest
from tests.conftest import Runner, number_of, read_metrics, same_weights, weights

BATCH, LANES, EPOCH = 16, 8, 15  # an epoch of `small_set` has 15 steps
BOTH = AugmentConfig(flip=True, shift=2)


def read_images(
    folder: Path,
    world: int,
    start: int,
    stop: int,
    config: AugmentConfig = BOTH,
    kind: type[Loader] = Loader,
    workers: int = 0,
) -> torch.Tensor:
    """Return the images of the global batches `start` to `stop`, uint8 [steps, B, C, H, W]."""
    manifest, own = load_manifest(str(folder)), LANES // world
    order = Order(5, manifest.shard_sizes, LANES, BATCH)
    augmentation = open_augmentation(config, 5, manifest.shard_sizes)
    streams = [
        kind(
            manifest,
            order,
            range(rank * own, (rank + 1) * own),
            workers=workers,
            augmentation=augmentation,
        ).batches(start)
        for rank in range(world)
    ]
    return torch.stack([torch.cat([next(s).images for s in streams]) for _ in range(start, stop)])


def moved_by_hand(image: np.ndarray, flip: int, down: int, right: int) -> np.ndarray:
    """Return an image [C, H, W] that is flipped and shifted by padding and cutting."""
    flipped = image[..., ::-1] if flip else image
    size = max(abs(down), abs(right))
    padded = np.pad(flipped, ((0, 0), (size, size), (size, size)), mode="edge")
    top, left = size - down, size - right
    return padded[:, top : top + image.shape[1], left : left + image.shape[2]]


def test_images_are_flipped_and_shifted_with_repeated_edges():
    images = torch.arange(5 * 2 * 4 * 6, dtype=torch.uint8).reshape(5, 2, 4, 6)
    moves = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, -2], [1, -3, 1], [1, 9, 9]])
    expected = [
        moved_by_hand(image.numpy(), *move) for image, move in zip(images, moves.tolist(), strict=True)
    ]
    assert np.array_equal(apply_moves(images, moves).numpy(), expected)
    assert apply_moves(images, moves).is_contiguous()


@pytest.mark.parametrize(
    ("kind", "workers", "world"),
    [(Loader, 0, 2), (Loader, 0, 8), (Loader, 1, 1), (ResidentLoader, 0, 1), (ResidentLoader, 0, 4)],
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
def test_they_do_not_depend_on_processes_caches_and_the_first_step(
    small_set: Path, kind: type[Loader], workers: int, world: int
):
    expected = read_images(small_set, 1, 0, 2 * EPOCH)
    start = EPOCH // 2
    images = read_images(small_set, world, start, 2 * EPOCH, kind=kind, workers=workers)
    assert torch.equal(images, expected[start:])


def test_each_sample_has_the_moves_of_its_number_and_epoch(small_set: Path):
    plain = read_images(small_set, 1, 0, 2 * EPOCH, AugmentConfig())
    images = read_images(small_set, 1, 0, 2 * EPOCH)
    manifest = load_manifest(str(small_set))
    augmentation, order = Augmentation(BOTH, 5, manifest.shard_sizes), Order(5, [30] * 8, LANES, BATCH)
    for step in range(2 * EPOCH):
        for row in range(BATCH):
            place, offset = order.locate(row // 2, step * 2 + row % 2)
            index = order.sample_order(place)[offset]
            moves = augmentation.draw(step // EPOCH, order.shard_at(place))[index].tolist()
            assert np.array_equal(images[step, row], moved_by_hand(plain[step, row].numpy(), *moves))


def test_the_moves_are_uniform_and_differ_between_epochs_and_seeds():
    sizes = [3000, 5000]
    first, second = (Augmentation(BOTH, 0, sizes).draw(epoch, 1) for epoch in (0, 1))
    other = Augmentation(BOTH, 1, sizes).draw(0, 1)
    assert torch.equal(first, Augmentation(BOTH, 0, sizes).draw(0, 1))
    for moves in (second, other):  # Of 2 x 5 x 5 equally probable moves a fiftieth agrees.
        assert (moves == first).all(1).double().mean() < 0.04
    # Four standard deviations of a frequency are below 4 * 0.5 / sqrt(5000) = 0.029.
    assert abs(first[:, 0].double().mean() - 0.5) < 0.029
    for column in (1, 2):
        values, counts = first[:, column].unique(return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        assert (counts / 5000 - 0.2).abs().max() < 0.029


@pytest.mark.parametrize(
    ("config", "columns"), [(AugmentConfig(flip=True), [0]), (AugmentConfig(shift=1), [1, 2])]
)
def test_each_of_them_can_be_used_alone(config: AugmentConfig, columns: list[int]):
    moves = Augmentation(config, 0, [100]).draw(0, 0)
    assert [i for i in range(3) if moves[:, i].any()] == columns


def test_both_are_off_by_default(small_set: Path):
    assert open_augmentation(AugmentConfig(), 0, [1]) is None
    images = read_images(small_set, 1, 0, EPOCH, AugmentConfig())
    assert sorted(number_of(image) for image in images.flatten(0, 1)) == list(range(240))


def test_a_run_uses_them_and_resumes_with_the_same(run_module: Runner, tiny: Path, tmp_path: Path):
    words = ["data.augment.flip=true", "data.augment.shift=1"]
    for name, steps in (("straight", 4), ("resumed", 2), ("resumed", 4)):
        run_module("train", tiny, f"run={tmp_path}/{name}", f"train.steps={steps}", *words)
    run_module("train", tiny, f"run={tmp_path}/plain", "train.steps=4")
    assert same_weights(weights(tmp_path / "straight", 4), weights(tmp_path / "resumed", 4))
    assert read_metrics(tmp_path / "plain")[0] != read_metrics(tmp_path / "straight")[0]
    line = run_module("train", tiny, f"run={tmp_path}/straight", "train.steps=6", status=2).stderr
    assert "data.augment.flip: True -> False" in line
