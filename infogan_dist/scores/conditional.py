"""Conditional fidelity: whether the images that are generated for a category are images of one class.

Each category of a code is matched to a class as in `recovery`: by the one-to-one matching that is best on the
training images. Thus each generated image has a target class: that of the category in its code.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from infogan_dist.data.finite import CHUNK_SIZE, SAMPLE_SEED
from infogan_dist.data.images import to_float, to_uint8
from infogan_dist.rng import permutation
from infogan_dist.scores.classifier import DESCRIPTION, WIDTH, convolution_features, fit_and_predict
from infogan_dist.scores.feature_cache import real_features
from infogan_dist.scores.features import DIGIT_SHAPE, DIGITS, FeatureNet, load_features
from infogan_dist.scores.fidelity import frechet_distance
from infogan_dist.scores.intervals import wilson_interval
from infogan_dist.scores.matching import NO_CLASS, contingency, hungarian, labelled_splits, unmatched
from infogan_dist.scores.score import Score, ScoreUnavailableError
from infogan_dist.scores.scored_model import CodeVariable, ScoredModel

CLASSIFIER_IMAGES = 10_000  # that a classifier is trained or tested on, at most
DIGIT_NAMES = [str(digit) for digit in range(10)]


def conditional(model: ScoredModel) -> Iterator[Score]:
    """Compute how well the generated images of each category agree with the class it is matched to.

    Yields:
        `conditional_accuracy`, in [0, 1]: the share of generated images that a classifier reads as the class
        of their category. `fid_within`, of which lower values are better, where `fidelity` is available: the
        mean over categories of FID between their generated images and the real training images of their
        class. `classification_accuracy_score`, in [0, 1] (Ravuri & Vinyals 2019, arXiv 1905.10887): the
        accuracy on real images of a classifier that is trained on generated images. With several categorical
        variables each name starts with that of the variable and `/`.

    Raises:
        ScoreUnavailableError: there is no categorical code, the images have no labels, or the classes of the
            held-out images cannot be matched to those of the training images.
        ConfigError: `scores.features` does not fit the images.
    """
    variables = model.categorical_variables()
    if not variables:
        raise ScoreUnavailableError("needs a categorical code")
    images = _Images(model)
    # Of the readers, the last one has the statistics of batch norm that fit real images.
    reader = model.real_readers()[-1]
    posteriors = model.real_posteriors(reader, "train")
    for variable in variables:
        code = model.spec.codes[variable.code]
        inferred = code.point_estimate(posteriors[variable.code])[:, variable.index].numpy()
        matching = _match(images, variable, inferred, reader.batch_norm)
        prefix = f"{variable.name}/" if len(variables) > 1 else ""
        for score in _variable_scores(images, matching):
            yield replace(score, name=prefix + score.name)


@dataclass(frozen=True)
class _Matching:
    """The classes of the categories of one variable.

    Attributes:
        classes: the class of each category, or `NO_CLASS`, int64 [size].
        categories: the category of each generated image, int64 [N].
        protocol: how the matching was fitted.
    """

    classes: np.ndarray
    categories: np.ndarray
    protocol: dict[str, Any]

    @property
    def targets(self) -> np.ndarray:
        """The target class of each generated image, or `NO_CLASS`, int64 [N]."""
        return self.classes[self.categories]


class _Images:
    """Labels and features of the real and the generated images, each computed once for all variables.

    Attributes:
        model: the scored model.
        names: of the classes.
        labels: the class of each real image, int64 [N], by split.
    """

    def __init__(self, model: ScoredModel):
        classes = labelled_splits(model)
        self.model, self.names, self.labels = model, classes.names, classes.labels

    @cached_property
    def generated_convolutions(self) -> np.ndarray:
        """Features for `fit_and_predict` of the first generated images."""
        sizes = self.model.generated_sizes[: CLASSIFIER_IMAGES // CHUNK_SIZE]
        return self.model.per_image(
            sizes, WIDTH, lambda i: convolution_features(self.model.generated_chunk(i))
        )

    @cached_property
    def real_convolutions(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Features for `fit_and_predict` of random real images, and their classes, by split."""
        return {split: self._real_convolutions(split) for split in self.labels}

    def _real_convolutions(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        dataset = self.model.datasets[split]
        order = permutation(SAMPLE_SEED, "scores/classifier", 0, len(dataset))
        positions = np.sort(order[:CLASSIFIER_IMAGES])
        chunks = [positions[i : i + CHUNK_SIZE] for i in range(0, len(positions), CHUNK_SIZE)]
        features = self.model.per_image(
            [len(chunk) for chunk in chunks],
            WIDTH,
            lambda i: convolution_features(torch.from_numpy(dataset.take(chunks[i]).images)),
        )
        return features, self.labels[split][positions]

    @cached_property
    def readings(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The class that a classifier reads in generated images, int64 [N], and its protocol."""
        if self.model.manifests["train"].image_shape == DIGIT_SHAPE and self.names == DIGIT_NAMES:
            return self._digit_readings()
        features, labels = self.real_convolutions["train"]
        queries, truth = [self.generated_convolutions], np.zeros(0, np.int64)
        if "test" in self.labels:
            held_out, truth = self.real_convolutions["test"]
            queries.append(held_out)
        predicted = fit_and_predict(features, labels, np.concatenate(queries), self.model.distributed_map)
        count = len(self.generated_convolutions)
        protocol: dict[str, Any] = {"classifier": f"{DESCRIPTION}, trained on {len(labels):,} train images"}
        if len(truth):
            protocol["measured"] = {"classifier_accuracy": float(np.mean(predicted[count:] == truth))}
        return predicted[:count], protocol

    def _digit_readings(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the digits that the package's classifier reads."""
        model = self.model
        network = FeatureNet()
        network.load_state_dict(load_file(DIGITS))
        network.eval().requires_grad_(False).to(model.engine.device)

        def read(i: int) -> torch.Tensor:
            pixels = to_uint8(model.generated_chunk(i))
            return network(to_float(pixels, torch.float32)).argmax(1).cpu()

        digits = model.per_image(model.generated_sizes, 1, read)[:, 0].astype(np.int64)
        features = load_features(None, DIGIT_SHAPE, model.engine.device)
        return digits, {
            "classifier": f"{features.name}, {features.fingerprint[:12]}",
            "measured": {"classifier_accuracy": features.metadata["accuracy"]},
        }

    @cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray, str] | None:
        """Features of the generated and of the real training images as in `fidelity`, and their network.

        None where `fidelity` is unavailable.
        """
        model, choice = self.model, self.model.config.scores.features
        shape = model.manifests["train"].image_shape
        if choice is None and shape != DIGIT_SHAPE:
            return None
        features = load_features(choice, shape, model.engine.device)
        real = real_features(model, "train", features)
        generated = model.per_image(
            model.generated_sizes,
            features.width,
            lambda i: features(model.generated_chunk(i)).double().cpu(),
        )
        return generated, real, f"{features.name}, {features.fingerprint[:12]}"


def _match(images: _Images, variable: CodeVariable, inferred: np.ndarray, batch_norm: str) -> _Matching:
    """Match a variable's categories to classes.

    Args:
        images: the images and their classes.
        variable: the categorical variable.
        inferred: its category of each training image, int64 [N].
        batch_norm: origin of the statistics with which the categories were inferred.
    """
    model = images.model
    size = model.spec.codes[variable.code].categories or 0
    classes = hungarian(contingency(inferred, images.labels["train"], size, len(images.names)))
    values = model.generated_codes[variable.code][:, variable.index]
    protocol = {
        "images": "drawn afresh from the prior",
        "generator": model.generator_weights,
        "matching": f"hungarian, fitted on {len(inferred):,} train images",
        "batch_norm": batch_norm,
        **unmatched(variable.name, size, len(images.names)),
        "class_of_category": {
            str(i): None if c == NO_CLASS else images.names[c] for i, c in enumerate(classes)
        },
    }
    return _Matching(classes, values.numpy().astype(np.int64), protocol)


def _variable_scores(images: _Images, matching: _Matching) -> Iterator[Score]:
    """Compute the scores of one variable."""
    yield _conditional_accuracy(images, matching)
    fid_within = _fid_within(images, matching)
    if fid_within is not None:
        yield fid_within
    accuracy_score = _classification_accuracy_score(images, matching)
    if accuracy_score is not None:
        yield accuracy_score


def _conditional_accuracy(images: _Images, matching: _Matching) -> Score:
    readings, classifier = images.readings
    count = len(readings)
    # An image of a category without a class counts as an error.
    is_correct = readings == matching.targets[:count]
    categories, value = matching.categories[:count], float(is_correct.mean())
    by_category = {
        str(i): float(is_correct[categories == i].mean())
        for i in range(len(matching.classes))
        if (categories == i).any()
    }
    protocol = {
        "samples": count,
        **classifier,
        **matching.protocol,
        "interval_95": wilson_interval(value, count),
        "accuracy_of_category": by_category,
    }
    return Score("conditional_accuracy", value, protocol)


def _fid_within(images: _Images, matching: _Matching) -> Score | None:
    """Return the mean FID within classes; None without features, or without two images for any category."""
    if images.features is None:
        return None
    generated, real, network = images.features
    sizes: dict[str, dict[str, int]] = {}
    distances: dict[str, float] = {}
    for i, label in enumerate(matching.classes):
        of_category, of_class = generated[matching.categories == i], real[images.labels["train"] == label]
        if label != NO_CLASS and min(len(of_category), len(of_class)) > 1:
            sizes[str(i)] = {"generated": len(of_category), "real": len(of_class)}
            distances[str(i)] = frechet_distance(of_class, of_category)
    if not distances:
        return None
    protocol = {
        "samples": len(generated),
        "real_images": len(real),
        "split": "train",
        "features": network,
        **matching.protocol,
        "fid_of_category": distances,
        "samples_of_category": sizes,
    }
    return Score("fid_within", float(np.mean(list(distances.values()))), protocol, higher_is_better=False)


def _classification_accuracy_score(images: _Images, matching: _Matching) -> Score | None:
    """Return the score of Ravuri & Vinyals 2019; None if no generated image has a class."""
    split = "test" if "test" in images.labels else "train"
    queries, truth = images.real_convolutions[split]
    generated, targets = images.generated_convolutions, matching.targets[: len(images.generated_convolutions)]
    has_class = targets != NO_CLASS
    if not has_class.any():
        return None
    distributed_map = images.model.distributed_map
    predicted = fit_and_predict(generated[has_class], targets[has_class], queries, distributed_map)
    value = float(np.mean(predicted == truth))
    measured: dict[str, float] = {"train_images": int(has_class.sum())}
    protocol: dict[str, Any] = {
        "samples": len(truth),
        "split": split,
        "classifier": f"{DESCRIPTION}, trained on {len(generated):,} generated images",
        **matching.protocol,
        "interval_95": wilson_interval(value, len(truth)),
        "measured": measured,
    }
    total = len(images.labels[split])
    if len(truth) < total:
        protocol["sampling"] = f"{len(truth):,} random of {total:,} images"
    if split == "test":
        # For comparison: with a perfect generator, generated images would train as well as real ones.
        features, labels = images.real_convolutions["train"]
        rows = permutation(SAMPLE_SEED, "scores/baseline", 0, len(labels))[: has_class.sum()]
        real = fit_and_predict(features[rows], labels[rows], queries, distributed_map)
        measured["trained_on_real_images"] = float(np.mean(real == truth))
    return Score("classification_accuracy_score", value, protocol)
