"""The matching of categories to classes, and the scores of the classification."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from infogan_dist.scores.recovery import NO_CLASS, accuracy, contingency, hungarian, majority, recovery
from infogan_dist.scores.score import Picture, ScoreUnavailableError


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
    assert scores["nmi_test_recalibrated"].protocol["batch_norm"] == "recalibrated on 240 train images"
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
