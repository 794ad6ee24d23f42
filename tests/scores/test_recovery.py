"""The matching of categories to classes, and the scores of the classification."""

import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest

from infogan_dist.creation.source import Source
from infogan_dist.creation.write import write_shard_set
from infogan_dist.scores import matching
from infogan_dist.scores.intervals import wilson_interval
from infogan_dist.scores.matching import (
    NO_CLASS,
    accuracy,
    class_accuracies,
    contingency,
    hungarian,
    labelled_splits,
    majority,
)
from infogan_dist.scores.recovery import recovery
from infogan_dist.scores.score import Picture, Score, ScoreUnavailableError

WriteClasses = Callable[[str, list[str], Sequence[int]], Path]


@pytest.fixture
def write_classes(tmp_path: Path) -> WriteClasses:
    """Return a function that writes a shard set from its name, class names and labels, 4 images per label.

    The images of the class with the n-th name of the alphabet have the brightness 20 n.
    """

    def write(name: str, names: list[str], labels: Sequence[int]) -> Path:
        alphabet = "abcdefghijklmnop"

        def read(i: int) -> tuple[np.ndarray, int]:
            label = labels[i // 4]
            level = alphabet.index(names[label]) if names else label
            image = np.random.default_rng(i).integers(0, 9, (1, 8, 8)) + 20 * level
            return image.astype(np.uint8), label

        write_shard_set(Source(name, 4 * len(labels), names, read), tmp_path / name, shards=2)
        return tmp_path / name

    return write


@pytest.fixture(autouse=True)
def clear_warnings() -> None:
    matching._warn_once.cache_clear()


def scores_of(items: list[Score | Picture]) -> dict[str, Score]:
    return {item.name: item for item in items if isinstance(item, Score)}


def test_a_contingency_table_counts_pairs():
    table = contingency(np.array([0, 0, 2, 2, 2]), np.array([1, 1, 0, 1, 0]), 3, 2)
    assert table.tolist() == [[0, 2], [0, 0], [2, 1]]


@pytest.mark.parametrize("seed", range(5))
def test_hungarian_is_the_best_one_to_one_matching(seed: int):
    table = np.random.default_rng(seed).integers(0, 50, (5, 5))
    best = max(sum(table[i, p[i]] for i in range(5)) for p in itertools.permutations(range(5)))
    assert accuracy(table, hungarian(table)) == best / table.sum()
    assert sorted(hungarian(table)) == list(range(5))
    rows, columns = linear_sum_assignment(-table)
    assert accuracy(table, hungarian(table)) == table[rows, columns].sum() / table.sum()


def test_unmatched_categories_are_errors_one_to_one_but_not_by_majority():
    table = np.array([[8, 0], [6, 1], [0, 5]])  # two categories of class 0
    assert hungarian(table).tolist() == [0, NO_CLASS, 1]
    assert accuracy(table, hungarian(table)) == 13 / 20
    assert majority(table).tolist() == [0, 0, 1]
    assert accuracy(table, majority(table)) == 19 / 20


def test_fewer_categories_than_classes_are_all_matched():
    table = np.array([[9, 2, 3], [0, 4, 1]])
    assert accuracy(table, hungarian(table)) == 13 / 19


def test_the_matching_is_fitted_on_the_training_images_alone():
    train, test = np.array([[9, 1], [2, 8]]), np.array([[0, 5], [5, 0]])
    assert accuracy(test, hungarian(train)) == 0.0


def test_both_splits_and_matchings_are_scored_with_each_reader(make_model, small_set):
    normed = "networks.recognition=[{kind: dense, out: 16, then: [batchnorm, lrelu]}]"
    items = list(recovery(make_model(normed, test=small_set)))
    scores = {s.name: s for s in items if not isinstance(s, Picture)}
    for suffix in ("", "_recalibrated"):
        for split in ("train", "test"):
            one_to_one = scores[f"accuracy_{split}_hungarian{suffix}"]
            assert one_to_one.value <= scores[f"accuracy_{split}_majority{suffix}"].value
            assert one_to_one.protocol["samples"] == 240
            assert one_to_one.protocol["split"] == split
            assert "fitted on 240 train images" in one_to_one.protocol["matching"]
            assert 0 <= scores[f"nmi_{split}{suffix}"].value <= 1
    assert scores["nmi_test"].protocol["batch_norm"] == "running statistics"
    assert scores["nmi_test_recalibrated"].protocol["batch_norm"] == "recalibrated on 240 random train images"
    # Here both splits have the same images.
    assert scores["accuracy_test_hungarian"].value == scores["accuracy_train_hungarian"].value
    assert [p.name for p in items if isinstance(p, Picture)] == [
        "confusion_test",
        "confusion_test_recalibrated",
    ]


def test_with_several_categorical_variables_each_is_scored(make_model):
    names = {s.name for s in recovery(make_model("codes.digit.count=2"))}
    assert {"digit.0/accuracy_train_hungarian", "digit.1/accuracy_train_hungarian"} <= names


def test_recovery_needs_a_categorical_code(make_model):
    with pytest.raises(ScoreUnavailableError, match="categorical"):
        list(recovery(make_model("codes.digit=null")))


def test_class_accuracies_are_shares_of_a_classs_images():
    table = np.array([[8, 1, 0], [2, 3, 0], [0, 4, 0]])
    shares = class_accuracies(table, np.array([0, 1, NO_CLASS]))
    assert shares[:2].tolist() == [8 / 10, 3 / 8]
    assert np.isnan(shares[2])  # no image has that class
    assert class_accuracies(table, np.array([0, 1, 1]))[1] == 7 / 8


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (10, 10), (7, 10), (950, 1000)])
def test_the_wilson_interval_is_that_of_scipy(correct: int, count: int):
    expected = binomtest(correct, count).proportion_ci(0.95, method="wilson")
    # 1.96 standard errors instead of 1.95996.
    assert wilson_interval(correct / count, count) == pytest.approx([expected.low, expected.high], abs=1e-4)


LETTERS = list("abcd")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ([0, 1], None),  # the last classes occur in neither split
        ([0, 1], [0, 1]),
        ([0, 1], [2, 3]),  # or in the other one only
        ([0, 3], [1]),
        ([3], [0]),
    ],
)
def test_classes_may_be_missing_from_any_split(
    make_model, write_classes: WriteClasses, train: list[int], test: list[int] | None
):
    held_out = None if test is None else write_classes("test", LETTERS, test)
    model = make_model(train=write_classes("train", LETTERS, train), test=held_out)
    items = list(recovery(model))
    (picture,) = (item for item in items if isinstance(item, Picture))
    assert picture.pixels.shape[1] == 44 * (len(LETTERS) + 1)
    for split, labels in (("train", train), ("test", test or [])):
        if labels:
            protocol = scores_of(items)[f"accuracy_{split}_hungarian"].protocol
            assert protocol["class_accuracy"].keys() == {LETTERS[i] for i in labels}


def test_more_names_or_more_labels_than_categories_do_not_matter(make_model, write_classes: WriteClasses):
    """Twelve classes and two categories, and labels without a name."""
    items = list(recovery(make_model("codes.digit.size=2", train=write_classes("many", [], range(12)))))
    assert scores_of(items)["accuracy_train_hungarian"].value <= 2 / 12
    items = list(recovery(make_model(train=write_classes("few", [], [0, 5]))))
    assert set(scores_of(items)["accuracy_train_majority"].protocol["class_accuracy"]) == {"0", "5"}


def test_classes_are_matched_by_their_names(make_model, write_classes: WriteClasses):
    train = write_classes("train", LETTERS, [0, 1, 2, 3])
    renamed = write_classes("renamed", ["d", "a", "c"], [1, 0, 2])
    model = make_model(train=train, test=renamed)
    classes = labelled_splits(model)
    assert classes.names == LETTERS
    # Brightness tells the class, whatever its label is.
    images = np.concatenate([model.datasets["test"].read(i).images for i in range(2)])
    assert classes.labels["test"].tolist() == (images.mean((1, 2, 3)) // 20).astype(int).tolist()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "x"], r"other has the classes x, which train lacks"),
        ([], r"train has class names and other has none"),
        (["a", "a"], r"a class name occurs twice"),
    ],
)
def test_other_classes_are_refused(make_model, write_classes: WriteClasses, names: list[str], message: str):
    train = write_classes("train", LETTERS, [0, 1])
    # Of a name that is not a letter of the alphabet above there are no images.
    model = make_model(train=train, test=write_classes("other", names, [0, 1]))
    with pytest.raises(ScoreUnavailableError, match=f"^needs held-out images.*{message}") as caught:
        list(recovery(model))
    assert "\n" not in str(caught.value)


def test_a_training_set_without_class_names_is_refused(make_model, write_classes: WriteClasses):
    model = make_model(train=write_classes("train", [], [0, 1]), test=write_classes("test", LETTERS, [0]))
    with pytest.raises(ScoreUnavailableError, match="test has class names and train has none"):
        list(recovery(model))


def test_accuracies_have_their_tables(make_model, write_classes: WriteClasses):
    train = write_classes("train", LETTERS, [0, 1, 2, 3])
    items = list(recovery(make_model("codes.digit.size=3", train=train)))
    for name in ("hungarian", "majority"):
        score = scores_of(items)[f"accuracy_train_{name}"]
        protocol = score.protocol
        of_category, confusion = protocol["class_of_category"], protocol["confusion"]
        assert list(of_category) == list(confusion) == ["0", "1", "2"]
        assert sum(sum(row.values()) for row in confusion.values()) == 16
        correct = {c: confusion[k].get(c, 0) for k, c in of_category.items()}
        assert sum(confusion[k].get(c, 0) for k, c in of_category.items()) / 16 == score.value
        if name == "hungarian":
            assert {c: n / 4 for c, n in correct.items()} == {
                c: protocol["class_accuracy"][c] for c in of_category.values()
            }
        assert protocol["interval_95"] == wilson_interval(score.value, 16)


@pytest.mark.parametrize(
    ("size", "comment", "warnings"),
    [(2, {"unmatched_classes": 2}, 1), (6, {"unmatched_categories": 2}, 0), (4, {}, 0)],
)
def test_categories_without_a_class_are_a_comment_and_classes_without_a_category_a_warning(
    make_model,
    write_classes: WriteClasses,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    comment: dict[str, int],
    warnings: int,
):
    monkeypatch.setattr(logging.getLogger("infogan_dist"), "propagate", True)
    train = write_classes("train", LETTERS, [0, 1, 2, 3])
    normed = "networks.recognition=[{kind: dense, out: 16, then: [batchnorm, lrelu]}]"  # two readers
    items = list(recovery(make_model(normed, f"codes.digit.size={size}", train=train, test=train)))
    protocol = scores_of(items)["accuracy_test_hungarian"].protocol
    assert {k: v for k, v in protocol.items() if k.startswith("unmatched")} == comment
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(messages) == warnings
    if messages:
        assert messages[0].startswith("codes.digit: 2 categories for 4 classes")
