"""Conditional fidelity of generators whose images are known."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from infogan_dist.config.schema import ScoresConfig
from infogan_dist.creation.source import Source
from infogan_dist.creation.write import write_shard_set
from infogan_dist.scores import classifier
from infogan_dist.scores import conditional as module
from infogan_dist.scores.classifier import WIDTH, convolution_features, fit_and_predict
from infogan_dist.scores.conditional import conditional
from infogan_dist.scores.distributed_map import DistributedMap, serial_map
from infogan_dist.scores.intervals import wilson_interval
from infogan_dist.scores.score import Score, ScoreUnavailableError

BARS = ["top", "middle", "bottom", "none"]
NOISE = np.random.default_rng(0).integers(0, 60, (200, 1, 8, 8))
DIGIT_OPTIONS = ("networks.discriminator=[{kind: dense, out: 4}]", "scores.images=200", "scores.limit=1500")


@pytest.fixture(autouse=True)
def private_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def bar(label: int, i: int) -> np.ndarray:
    """Return an image of a class, uint8 [1, 8, 8]: a bright bar at one of three heights, or none."""
    image = NOISE[i % len(NOISE)].copy()
    if label < 3:
        image[:, 3 * label : 3 * label + 2] += 190
    return image.astype(np.uint8)


def write_bars(out: Path, count: int = 160) -> Path:
    source = Source("bars", count, BARS, lambda i: (bar(i % 4, i), i % 4))
    write_shard_set(source, out, shards=2)
    return out


class Bars(nn.Module):
    """A generator of bars, whose class is given by the category."""

    def __init__(self, class_of_category: list[int]):
        super().__init__()
        self.class_of_category = class_of_category

    def forward(self, latents: Tensor) -> Tensor:
        size = len(self.class_of_category)
        # The categories come first after the noise, of which TINY has 6 variables.
        categories = latents[:, 6 : 6 + size].argmax(1).tolist()
        noise = ((latents[:, 0] * 1e6).long() % 200).abs().tolist()
        images = [bar(self.class_of_category[c], n) for c, n in zip(categories, noise, strict=True)]
        return torch.from_numpy(np.stack(images)).to(latents.dtype) / 127.5 - 1


@pytest.fixture
def perfect_matching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Match category i to class i, as a trained model does whose categories are the classes."""
    monkeypatch.setattr(module, "hungarian", lambda table: np.arange(len(table)))


def scores_of(model) -> dict[str, Score]:
    return {score.name: score for score in conditional(model)}


@pytest.mark.usefixtures("perfect_matching")
def test_a_generator_of_the_right_classes_scores_1(make_model, tmp_path: Path):
    folder = write_bars(tmp_path / "bars")
    model = make_model("codes.digit.size=4", "scores.images=120", train=folder, test=folder)
    model.generator = Bars([0, 1, 2, 3])
    result = scores_of(model)
    assert list(result) == ["conditional_accuracy", "classification_accuracy_score"]  # no features for FID
    for score in result.values():
        assert score.value == 1.0
        assert score.higher_is_better
    accuracy = result["conditional_accuracy"].protocol
    assert accuracy["samples"] == 120
    assert accuracy["measured"]["classifier_accuracy"] == 1.0
    assert accuracy["accuracy_of_category"] == {"0": 1.0, "1": 1.0, "2": 1.0, "3": 1.0}
    assert accuracy["class_of_category"] == dict(zip("0123", BARS, strict=True))
    assert accuracy["interval_95"] == wilson_interval(1.0, 120)
    protocol = result["classification_accuracy_score"].protocol
    assert protocol["split"] == "test"
    assert protocol["samples"] == 160
    assert protocol["measured"] == {"train_images": 120, "trained_on_real_images": 1.0}


@pytest.mark.usefixtures("perfect_matching")
def test_swapped_classes_count_as_errors(make_model, tmp_path: Path):
    model = make_model("codes.digit.size=4", "scores.images=120", train=write_bars(tmp_path / "bars"))
    model.generator = Bars([1, 0, 2, 3])
    result = scores_of(model)
    categories = model.generated_codes["digit"][:, 0]
    accuracy = result["conditional_accuracy"]
    assert accuracy.value == float((categories >= 2).double().mean())
    assert accuracy.protocol["accuracy_of_category"] == {"0": 0.0, "1": 0.0, "2": 1.0, "3": 1.0}
    # Without held-out images the classifier is tested on training images: those of two classes are wrong.
    score = result["classification_accuracy_score"]
    assert score.value == 0.5
    assert score.protocol["split"] == "train"
    assert "trained_on_real_images" not in score.protocol["measured"]


def test_categories_without_a_class_are_errors(make_model, tmp_path: Path):
    model = make_model("codes.digit.size=6", "scores.images=120", train=write_bars(tmp_path / "bars"))
    model.generator = Bars([0, 1, 2, 3, 0, 1])
    result = scores_of(model)
    protocol = result["conditional_accuracy"].protocol
    unmatched = [i for i, name in protocol["class_of_category"].items() if name is None]
    assert len(unmatched) == protocol["unmatched_categories"] == 2
    assert [protocol["accuracy_of_category"][i] for i in unmatched] == [0.0, 0.0]
    categories = model.generated_codes["digit"][:, 0].long().tolist()
    trained_on = sum(str(c) not in unmatched for c in categories)
    assert result["classification_accuracy_score"].protocol["measured"]["train_images"] == trained_on


@pytest.mark.usefixtures("perfect_matching")
def test_a_generator_of_one_class_trains_a_constant_classifier(make_model, tmp_path: Path):
    model = make_model("codes.digit.size=4", "scores.images=40", train=write_bars(tmp_path / "bars"))
    model.generator = Bars([2, 2, 2, 2])
    result = scores_of(model)
    # Its images have four labels and no difference but noise.
    assert result["classification_accuracy_score"].value < 0.6
    assert 0.0 < result["conditional_accuracy"].value < 0.5


class Replay(nn.Module):
    """A generator that returns real digits of the class that is given by the category."""

    def __init__(self, images: Tensor, labels: Tensor, shift: int = 0):
        super().__init__()
        self.images = [images[labels == i] for i in range(10)]
        self.shift = shift

    def forward(self, latents: Tensor) -> Tensor:
        categories = (latents[:, 6:16].argmax(1) + self.shift) % 10
        order = ((latents[:, 0] * 1e6).long().abs() % 50).tolist()
        return torch.stack([self.images[c][n] for c, n in zip(categories.tolist(), order, strict=True)])


def real_digits(model) -> tuple[Tensor, Tensor]:
    dataset = model.datasets["train"]
    chunks = [dataset.read(i) for i in range(len(dataset.sizes))]
    images = np.concatenate([c.images for c in chunks])
    labels = np.concatenate([c.labels for c in chunks])
    return torch.from_numpy(images).float() / 127.5 - 1, torch.from_numpy(labels)


@pytest.mark.usefixtures("perfect_matching")
def test_digits_are_read_by_the_packages_classifier(make_model, digits: Path):
    model = make_model(*DIGIT_OPTIONS, train=digits)
    images, labels = real_digits(model)
    model.generator = Replay(images, labels)
    right = scores_of(model)
    assert list(right) == ["conditional_accuracy", "fid_within", "classification_accuracy_score"]
    assert right["conditional_accuracy"].value > 0.97
    protocol = right["conditional_accuracy"].protocol
    assert protocol["classifier"].startswith("mnist_features, ")
    assert protocol["measured"]["classifier_accuracy"] > 0.99
    assert [name for name, s in right.items() if not s.higher_is_better] == ["fid_within"]
    within = right["fid_within"].protocol
    assert len(within["fid_of_category"]) == 10
    assert within["real_images"] == 1500
    assert within["samples"] == 200
    assert sum(s["generated"] for s in within["samples_of_category"].values()) == 200
    assert right["fid_within"].value == pytest.approx(np.mean(list(within["fid_of_category"].values())))

    wrong = make_model(*DIGIT_OPTIONS, train=digits)
    wrong.generator = Replay(images, labels, shift=1)
    swapped = scores_of(wrong)
    assert swapped["conditional_accuracy"].value < 0.03
    assert swapped["fid_within"].value > 3 * right["fid_within"].value
    assert swapped["classification_accuracy_score"].value < 0.1
    # Trained on 200 images, with few features: chance is .1.
    assert right["classification_accuracy_score"].value > 0.7


def parallel_map(world: int) -> DistributedMap:
    """Return the map of several processes: each computes its rows, and all get the sum of their tables."""

    def distributed_map(count: int, width: int, task) -> np.ndarray:
        tables = np.zeros((world, count, width))
        for rank in range(world):
            for i in range(count * rank // world, count * (rank + 1) // world):
                tables[rank, i] = task(i)
        return tables.sum(axis=0)

    return distributed_map


@pytest.mark.rig
@pytest.mark.usefixtures("perfect_matching")
def test_any_number_of_processes_computes_the_same_bits(make_model, digits: Path):
    results = []
    for world in (1, 3):
        model = make_model(
            *DIGIT_OPTIONS, "scores.images=700", "scores.limit=1200", train=digits, test=digits
        )
        model.distributed_map = parallel_map(world)
        model.generator = Replay(*real_digits(model))
        results.append(scores_of(model))
    assert results[0] == results[1]


@pytest.mark.rig
def test_the_classifier_learns_digits_in_seconds(digits: Path, make_model):
    model = make_model(*DIGIT_OPTIONS, "scores.limit=5000", train=digits)
    images, labels = real_digits(model)
    start = time.process_time()
    features = np.concatenate([convolution_features(part) for part in images.split(500)])
    predicted = fit_and_predict(features[:4000], labels[:4000].numpy(), features[4000:], serial_map)
    seconds = time.process_time() - start
    assert features.shape == (5000, WIDTH)
    # It is 95% for 4,000 training images; the standard error of a share of 1,000 is .7%.
    assert np.mean(predicted == labels[4000:].numpy()) > 0.92
    assert seconds < 30  # for half of the images; a minute of one core is the limit for all of them


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 40, 24), (3, 96, 96), (1, 28, 28)])
def test_features_of_images_of_any_shape_have_one_width(shape: tuple[int, int, int]):
    pixels = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = convolution_features(pixels)
    assert features.shape == (3, WIDTH)
    assert np.isfinite(features).all()
    # Images in [-1, 1] are rounded to the same pixels.
    assert np.array_equal(convolution_features(pixels.float() / 127.5 - 1), features)


def test_a_single_class_is_predicted_without_training():
    features = np.random.default_rng(0).normal(size=(5, 3))
    assert fit_and_predict(features, np.full(5, 7), features, serial_map).tolist() == [7] * 5


def test_at_most_ten_thousand_images_train_a_classifier():
    """The time of a minute is for that number, the default of generated images."""
    assert ScoresConfig().images == module.CLASSIFIER_IMAGES == 10_000
    assert "convolutions" in classifier.DESCRIPTION


def test_with_several_categorical_variables_each_is_scored(make_model):
    names = {s.name for s in conditional(make_model("codes.digit.count=2", "scores.images=50"))}
    assert {f"digit.{i}/conditional_accuracy" for i in (0, 1)} <= names


def test_conditional_needs_labels_and_a_categorical_code(make_model, tmp_path: Path):
    with pytest.raises(ScoreUnavailableError, match=r"^needs a categorical code"):
        list(conditional(make_model("codes.digit=null")))
    source = Source("unlabelled", 40, [], lambda i: (bar(0, i), -1))
    write_shard_set(source, tmp_path / "unlabelled", shards=2)
    with pytest.raises(ScoreUnavailableError, match=r"^needs labels"):
        list(conditional(make_model(train=tmp_path / "unlabelled")))
