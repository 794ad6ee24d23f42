"""Scores of disentanglement, on representations whose scores are known."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy.linalg import hadamard
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.svm import LinearSVC

from infogan_dist.errors import DataError
from infogan_dist.rng import permutation
from infogan_dist.scores import interventions, predictors, representation
from infogan_dist.scores.disentanglement import (
    disentanglement,
    mig,
    modularity,
    mutual_information,
    protocols,
)
from infogan_dist.scores.distributed_map import DistributedMap, serial_map
from infogan_dist.scores.factors import factors
from infogan_dist.scores.interventions import beta_vae, factor_vae
from infogan_dist.scores.predictors import DCI, dci, dci_forest, explicitness, sap, sap_threshold
from infogan_dist.scores.representation import Representation
from tests.scores.conftest import write_factor_set

NAMES = [
    "mig", "sap", "sap_threshold", "dci_disentanglement", "dci_completeness", "dci_informativeness",
    "dci_forest_disentanglement", "dci_forest_completeness", "dci_forest_informativeness", "factor_vae",
    "factor_vae_unpruned", "beta_vae", "beta_vae_standardised", "modularity", "modularity_live",
    "explicitness",
]  # fmt: skip
# 5 standard deviations of an accuracy on 1,000 votes. With random votes for training as well, the deviation
# is 1.2 times that of the binomial distribution, .0137 (measured with 24 seeds).
CHANCE = 5 * 1.2 * np.sqrt(0.25 * 0.75 / 1000)


@pytest.fixture(autouse=True, scope="module")
def small_sizes() -> Iterator[None]:
    """Use fewer votes and images, for speed; these tests do not need the second decimal."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (representation, interventions):
            patch.setattr(module, "TRAIN_SIZE", 2000)
            patch.setattr(module, "TEST_SIZE", 1000)
        patch.setattr(predictors, "BOOSTING_STAGES", 30)
        yield


@pytest.fixture(scope="module")
def before() -> dict[str, float]:
    """Return the scores of `noisy`."""
    return all_scores(noisy(), CONTINUOUS, UNEQUAL)


def grid(sizes: tuple[int, ...], copies: int) -> np.ndarray:
    """Return every combination of factors equally often, so that they are exactly independent."""
    return np.tile(np.array(list(itertools.product(*map(range, sizes)))), (copies, 1))


UNEQUAL = grid((2, 3, 4, 5), 25)  # 3,000 images
EQUAL = grid((4, 4, 4, 4), 12)  # 3,072 images
CONTINUOUS = [False] * 4


def noise(seed: int = 0, shape: tuple[int, ...] = UNEQUAL.shape) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def noisy() -> np.ndarray:
    """Return a noisy code of each factor, so that no score is at the end of its range."""
    return UNEQUAL + 0.4 * noise()


def all_scores(
    codes: np.ndarray, discrete: list[bool], factors: np.ndarray, distributed_map: DistributedMap = serial_map
) -> dict[str, float]:
    return dict(disentanglement(Representation(codes, discrete, factors), 0, distributed_map))


def parallel_map(world: int) -> DistributedMap:
    """Return the map of `world` processes: each computes its rows, and all get the sum of their tables."""

    def distributed_map(count: int, width: int, task: Callable[[int], ArrayLike]) -> np.ndarray:
        tables = np.zeros((world, count, width))
        for rank in range(world):
            for i in range(rank, count, world):
                tables[rank, i] = task(i)
        return tables.sum(axis=0)

    return distributed_map


def entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def test_mutual_information_is_that_of_the_contingency_table_in_nats():
    factors = UNEQUAL[:, :3]
    codes = np.stack([noisy()[:, 0], noisy()[:, 1], UNEQUAL[:, 2] + 10.0 * UNEQUAL[:, 0]], axis=1)
    information = mutual_information(Representation(codes, [False, False, True], factors), serial_map)
    for i, k in itertools.product(range(3), range(3)):
        values = np.unique(codes[:, i])
        edges = np.histogram_bin_edges(codes[:, i], 20) if i < 2 else np.append(values, np.inf)
        joint = np.histogram2d(codes[:, i], factors[:, k], [edges, np.arange(6) - 0.5])[0] / len(codes)
        expected = entropy(joint.sum(1)) + entropy(joint.sum(0)) - entropy(joint.ravel())
        # The tolerance is for sums of entropies below 4 nats.
        assert information[i, k] == pytest.approx(expected, abs=1e-12)


def test_mig_and_modularity_by_hand():
    # In eight images, code 0 determines factor 0, and predicts 3 of 4 values of factor 1; code 1 determines
    # factor 1 and predicts 3 of 4 values of factor 0; code 2 is dead.
    factors = np.array([[0, 0], [0, 0], [0, 0], [0, 1], [1, 0], [1, 1], [1, 1], [1, 1]])
    codes = np.column_stack([factors * [1.0, -7.0], np.full(8, 0.1)])
    by_hand = Representation(codes, [False] * 3, factors)
    partly = np.log(2) - entropy(np.array([0.25, 0.75]))
    gap = (np.log(2) - partly) / np.log(2)
    assert mig(by_hand, serial_map) == pytest.approx(gap, abs=1e-12)
    expected = 1 - (partly / np.log(2)) ** 2  # of both live codes; K - 1 = 1
    assert modularity(by_hand, serial_map, live_only=True) == pytest.approx(expected, abs=1e-12)
    assert modularity(by_hand, serial_map) == pytest.approx(2 / 3 * expected, abs=1e-12)


def rare_factor() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a binary factor whose value 1 is rare; codes: itself and a copy with errors; and the errors."""
    factor = (np.arange(3000) % 10 == 0).astype(np.int64)
    wrong = np.random.default_rng(1).random(3000) < 0.2
    codes = np.stack([factor * 2.0 + 1, np.where(wrong, 1 - factor, factor) * 2.0 + 1], axis=1)
    return factor, codes, wrong


@pytest.mark.parametrize("discrete", [False, True])
def test_sap_by_hand(discrete: bool):
    # With balanced classes both codes predict their own value; the accuracy is that of all test images.
    factor, codes, wrong = rare_factor()
    test = permutation(0, "sap", 0, 3000)[2000:]
    score = sap(Representation(codes, [discrete] * 2, factor[:, None]), 0, serial_map)
    assert score == pytest.approx(wrong[test].mean(), abs=1e-12)


def test_sap_is_that_of_a_linear_svm_on_raw_codes():
    """The definition of disentanglement_lib, for a factor of five values, of which a line separates two."""
    codes, factor = np.stack([UNEQUAL[:, 3] * 1.0, noisy()[:, 3] * 0.1], axis=1), UNEQUAL[:, 3]
    order = permutation(0, "sap", 0, 3000)
    train, test = order[:2000], order[2000:]
    accuracies = [
        LinearSVC(C=0.01, class_weight="balanced")
        .fit(code[train, None], factor[train])
        .score(code[test, None], factor[test])
        for code in codes.T
    ]
    assert max(accuracies) < 0.9
    score = sap(Representation(codes, [False] * 2, factor[:, None]), 0, serial_map)
    assert score == pytest.approx(abs(accuracies[0] - accuracies[1]), abs=1e-12)


def test_a_linear_svm_reads_a_category_by_indicators():
    category = np.arange(3000) % 6
    # No line separates even from odd numbers, but indicators do.
    factors = category[:, None] % 2
    assert sap(Representation(category[:, None] * 1.0, [True], factors), 0, serial_map) == 1
    assert sap(Representation(category[:, None] * 1.0, [False], factors), 0, serial_map) < 0.75


@pytest.mark.parametrize("discrete", [False, True])
def test_sap_threshold_by_hand(discrete: bool):
    # Code 0 is the factor; code 1 predicts 80% of the images correctly. In balanced accuracy it does not
    # matter that value 1 is rare.
    factor, codes, wrong = rare_factor()
    test = permutation(0, "sap", 0, 3000)[2000:]
    accuracies = [1 - wrong[test][factor[test] == value].mean() for value in (0, 1)]
    score = sap_threshold(Representation(codes, [discrete] * 2, factor[:, None]), 0, serial_map)
    assert score == pytest.approx(1 - np.mean(accuracies), abs=1e-12)


def test_sap_threshold_predicts_from_each_category_separately():
    category = np.arange(3000) % 6
    codes, factors = category[:, None] * 1.0, category[:, None] % 2
    assert sap_threshold(Representation(codes, [True], factors), 0, serial_map) == 1
    # One threshold separates one of three even categories: (1/3 + 1) / 2. The tolerance is 5 standard errors
    # of 1,000 images.
    expected = pytest.approx(2 / 3, abs=5 * 0.011)
    assert sap_threshold(Representation(codes, [False], factors), 0, serial_map) == expected


def test_dci_forest_by_hand():
    # Factor 0 is code 0; factor 1 depends equally on codes 0 and 1; code 2 is not used.
    a, b, c = grid((2, 2, 2), 375).T
    codes, factors = np.stack([a, b, c], axis=1) * 1.0, np.stack([a, 2 * a + b], axis=1)
    result = dci_forest(Representation(codes, [False] * 3, factors), 0, serial_map)
    importance = np.array([[1, 0.5], [0, 0.5], [0, 0]])
    weights = importance.sum(1)
    code_0 = 1 - entropy(importance[0] / weights[0]) / np.log(2)
    # The bootstrap of a forest weighs the halves by entropies near their maximum, with an error of order 1 /
    # 1,600.
    assert result.disentanglement == pytest.approx((weights[0] * code_0 + weights[1] * 1) / 2, abs=3e-3)
    assert result.completeness == pytest.approx(np.mean([1, 1 - np.log(2) / np.log(3)]), abs=3e-3)
    assert result.informativeness == 1


def test_dci_by_hand():
    # Factor 0 is code 0 and factor 1 is code 1; code 2 is not used.
    codes = grid((2, 3, 2), 250) * 1.0
    result = dci(Representation(codes, [False] * 3, codes[:, :2].astype(int)), 0, serial_map)
    values = (result.disentanglement, result.completeness, result.informativeness)
    assert values == pytest.approx((1, 1, 1), abs=1e-12)


def test_dci_is_that_of_gradient_boosted_trees():
    """The definition of disentanglement_lib, from the importances of scikit-learn's classifier."""
    codes, factors = noisy()[:, :3] @ [[1, 0.5, 0], [0, 1, 0], [0, 0, 1]], UNEQUAL[:, :2]
    order = permutation(0, "dci", 0, 3000)
    train, test = order[:2000], order[2000:]
    fitted = [
        GradientBoostingClassifier(n_estimators=30, random_state=0).fit(codes[train], f[train])
        for f in factors.T
    ]
    importance = np.stack([f.feature_importances_ for f in fitted], axis=1)
    by_code = [1 - entropy(row / row.sum()) / np.log(2) for row in importance]
    by_factor = [1 - entropy(column) / np.log(3) for column in importance.T]
    accuracies = [f.score(codes[test], factors[test, k]) for k, f in enumerate(fitted)]
    result = dci(Representation(codes, [False] * 3, factors), 0, serial_map)
    # Thresholds between standardised codes are rounded differently.
    expected = np.average(by_code, weights=importance.sum(axis=1))
    assert result.disentanglement == pytest.approx(expected, abs=0.005)
    assert result.completeness == pytest.approx(np.mean(by_factor), abs=0.005)
    assert result.informativeness == pytest.approx(np.mean(accuracies), abs=0.005)


def test_explicitness_by_hand():
    # The score of a logistic regression on one code rises with it, or falls: the area under the ROC curve is
    # the share of pairs of a 0 and a 1 that the code orders correctly.
    factor, codes, _ = rare_factor()
    code = codes[:, 1] + 0.3 * noise()[:, 0]
    test = permutation(0, "explicitness", 0, 3000)[2000:]
    zeros, ones = (code[test][factor[test] == value] for value in (0, 1))
    expected = np.mean(ones[:, None] > zeros)
    score = explicitness(Representation(code[:, None], [False], factor[:, None]), 0, serial_map)
    assert 0.7 < score < 0.9
    assert score == pytest.approx(expected, abs=1e-12)


def test_explicitness_does_not_depend_on_the_shape_of_the_representation():
    # A rotation mixes the factors, but a linear classifier separates them as well as before.
    rotated = explicitness(Representation((EQUAL - 1.5) @ hadamard(4) / 2, CONTINUOUS, EQUAL), 0, serial_map)
    assert rotated > 0.99
    assert explicitness(Representation(noise(), CONTINUOUS, UNEQUAL), 0, serial_map) == pytest.approx(
        # An area of n0 x n1 pairs has a standard error below 1 / sqrt(3 min(n0, n1)), here .041.
        0.5,
        abs=5 * 0.041 / 2,
    )
    assert explicitness(Representation(UNEQUAL * 1.0, [True] * 4, UNEQUAL), 0, serial_map) == 1


def test_factor_vae_leaves_out_codes_of_a_small_deviation():
    """Of Locatello et al. 2019: below a standard deviation of .05 a code counts as dead."""
    codes = noisy()
    codes[:, 1] *= 0.049 / codes[:, 1].std()
    small = Representation(codes, CONTINUOUS, UNEQUAL)
    without = Representation(np.delete(codes, 1, axis=1), CONTINUOUS[1:], UNEQUAL)
    assert factor_vae(small, 0, serial_map) == factor_vae(without, 0, serial_map)
    unpruned = factor_vae(small, 0, serial_map, threshold=0.0)
    assert unpruned == factor_vae(Representation(noisy(), CONTINUOUS, UNEQUAL), 0, serial_map)
    assert unpruned > factor_vae(small, 0, serial_map) + 0.1
    only = Representation(codes[:, 1:2], [False], UNEQUAL)
    assert factor_vae(only, 0, serial_map) == 0


def test_beta_vae_reads_codes_of_a_small_scale_only_if_they_are_standardised():
    """A regularised regression ignores raw codes of a small scale, as in disentanglement_lib."""
    small = Representation(noisy() * 1e-3, CONTINUOUS, UNEQUAL)
    assert beta_vae(small, 0, serial_map) < 0.6
    standardised = beta_vae(small, 0, serial_map, standardised=True)
    assert standardised > 0.9
    unit = Representation(noisy(), CONTINUOUS, UNEQUAL)
    assert standardised == pytest.approx(beta_vae(unit, 0, serial_map, standardised=True), abs=1e-3)


def test_each_score_has_a_protocol_with_its_predictor_and_sizes():
    result = protocols(Representation(noisy(), CONTINUOUS, UNEQUAL))
    assert list(result) == NAMES
    assert result["mig"]["bins"] == result["modularity"]["bins"] == 20
    assert {k: v for k, v in result["sap"].items() if "images" in k} == {
        "train_images": 2000, "test_images": 1000,
    }  # fmt: skip
    assert result["dci_forest_completeness"]["validation_images"] == 400
    assert result["factor_vae"]["smallest_deviation"] == 0.05
    assert result["beta_vae"]["batch"] == 64
    assert result["beta_vae"]["train_votes"] == 2000
    for name in NAMES:
        assert result[name].keys() & {"bins", "predictor"}, name


def test_scores_of_a_model_have_these_protocols(make_model, tmp_path: Path):
    model = make_model(train=write_factor_set(tmp_path / "factors"))
    result = {score.name: score.protocol for score in factors(model)}
    assert list(result) == NAMES  # without batch norm there is one reader
    for name, protocol in result.items():
        assert protocol["samples"] == 240
        assert protocol.keys() & {"bins", "predictor"}, name
    assert (result["dci_completeness"]["train_images"], result["sap"]["test_images"]) == (160, 80)


def test_a_value_that_only_one_image_has_breaks_no_score():
    """Then all training images, or all test images, may have one value."""
    factors = UNEQUAL[:60].copy()
    factors[:, 0] = 0
    for image in (0, 30):
        factors[:, 0] = np.arange(60) == image
        scores = all_scores(noisy()[:60], CONTINUOUS, factors)
        assert all(np.isfinite(value) for value in scores.values())


@pytest.mark.parametrize("discrete", [False, True])
def test_factors_themselves_score_1(discrete: bool):
    scores = all_scores(UNEQUAL * 1.0, [discrete] * 4, UNEQUAL)
    assert list(scores) == NAMES
    chance = np.mean([1 - 1 / 2, 1 - 1 / 3, 1 - 1 / 4, 1 - 1 / 5])
    # Balanced accuracy at chance on 1,000 images has a standard error below .016; 5 errors of the mean of
    # four.
    assert scores.pop("sap_threshold") == pytest.approx(chance, abs=0.04)
    # A linear SVM separates categories, but not the middle values of a continuous code.
    sap_score = scores.pop("sap")
    assert sap_score == pytest.approx(chance, abs=0.04) if discrete else 0.1 < sap_score < chance
    for name, value in scores.items():
        assert value == pytest.approx(1, abs=1e-12), name


def test_order_and_scale_of_codes_do_not_matter(before: dict[str, float]):
    codes, order = noisy(), [2, 0, 3, 1]
    moved = codes[:, order] * [-3, 0.1, 100, 1e6] + [7, -1, 1e6, 0.3]
    after = all_scores(moved, CONTINUOUS, UNEQUAL)
    for name in NAMES:
        assert 0.1 < before[name] <= 1
        if name in ("sap", "beta_vae"):  # these are defined on raw codes
            continue
        # Forests try the codes in a random order, so that ties are broken differently, for up to ten images
        # of 1,000; in other scores values are rounded differently at thresholds.
        assert after[name] == pytest.approx(before[name], abs=0.01 if "dci" in name else 1e-3), name


def test_the_numbering_of_categories_does_not_matter():
    categories = np.where(np.random.default_rng(2).random(len(UNEQUAL)) < 0.6, 0, UNEQUAL[:, 3])
    codes = noisy()
    codes[:, 3] = categories
    renumbered = codes.copy()
    renumbered[:, 3] = np.array([3, 0, 4, 1, 2])[categories]
    discrete = [False, False, False, True]
    before, after = (Representation(c, discrete, UNEQUAL) for c in (codes, renumbered))
    for score in (sap, sap_threshold, factor_vae):
        assert score(after, 0, serial_map) == score(before, 0, serial_map)
    alone = [beta_vae(Representation(c[:, 3:], [True], UNEQUAL), 0, serial_map) for c in (codes, renumbered)]
    assert alone[0] == alone[1] < 1
    for score in (mig, modularity):
        assert score(after, serial_map) == pytest.approx(score(before, serial_map), abs=1e-12)
    # The solver's last digits depend on the order of the indicators.
    assert explicitness(after, 0, serial_map) == pytest.approx(explicitness(before, 0, serial_map), abs=1e-4)


def test_a_rotation_that_mixes_all_factors_equally_is_entangled():
    scores = all_scores((EQUAL - 1.5) @ hadamard(4) / 2, CONTINUOUS, EQUAL)
    # By symmetry every code has the same information on every factor, exactly so on a full grid.
    assert scores["mig"] == pytest.approx(0, abs=1e-12)
    assert scores["modularity"] == pytest.approx(0, abs=1e-12)
    for name in ("sap", "sap_threshold"):
        # The gap between the best two of four equivalent codes differs from 0 by chance: 5 standard errors of
        # accuracy.
        assert 0 <= scores[name] < 5 * np.sqrt(0.25 / 1000)
    for name in ("dci", "dci_forest"):
        assert 0 <= scores[f"{name}_disentanglement"] < 0.01  # the entropy is flat at equal shares
        assert 0 <= scores[f"{name}_completeness"] < 0.01
    # The rotation loses no information, but boosted trees of depth 3 use three of the four codes at a time.
    assert scores["dci_forest_informativeness"] > 0.95
    assert scores["dci_informativeness"] > 0.7
    for name in ("factor_vae", "factor_vae_unpruned", "beta_vae", "beta_vae_standardised"):
        assert scores[name] == pytest.approx(0.25, abs=CHANCE)


@pytest.mark.rig
def test_noise_scores_chance():
    scores = all_scores(noise(), CONTINUOUS, UNEQUAL)
    # The mean information of independent variables is (20 - 1)(n - 1) / 2N by chance; divided by H(n), and
    # doubled.
    chance = np.mean([19 * (n - 1) / (2 * len(UNEQUAL)) / np.log(n) for n in (2, 3, 4, 5)])
    assert 0 <= scores["mig"] < 2 * chance
    assert 0 <= scores["sap"] < 5 * np.sqrt(0.25 / 1000)
    assert 0 <= scores["sap_threshold"] < 5 * np.sqrt(0.25 / 1000)
    assert 0 <= scores["dci_disentanglement"] < 0.1
    assert 0 <= scores["dci_forest_disentanglement"] < 0.1
    # Classes are equally frequent, 1/n each; 5 standard errors of the mean of four accuracies on 1,000
    # images.
    expected = np.mean([1 / n for n in (2, 3, 4, 5)])
    for name in ("dci_informativeness", "dci_forest_informativeness"):
        assert scores[name] == pytest.approx(expected, abs=5 * 0.015 / 2)
    for name in ("factor_vae", "factor_vae_unpruned", "beta_vae", "beta_vae_standardised"):
        assert scores[name] == pytest.approx(0.25, abs=CHANCE)


def test_codes_that_occur_twice_have_no_gap():
    twice = Representation(np.repeat(noisy(), 2, axis=1), [False] * 8, UNEQUAL)
    assert mig(twice, serial_map) == 0
    assert sap(twice, 0, serial_map) == 0
    assert sap_threshold(twice, 0, serial_map) == 0
    once = Representation(noisy(), CONTINUOUS, UNEQUAL)
    assert modularity(twice, serial_map) == modularity(once, serial_map)


@pytest.mark.rig
@pytest.mark.parametrize("is_category", [False, True])
def test_a_dead_code_changes_nothing(is_category: bool, before: dict[str, float]):
    codes, discrete = noisy(), [*CONTINUOUS, is_category]
    dead = np.column_stack([codes, np.full(len(codes), 0.1)])  # the computed mean of .1 is not exactly .1
    after = all_scores(dead, discrete, UNEQUAL)
    for name in ("mig", "sap", "sap_threshold", "factor_vae", "factor_vae_unpruned", "modularity_live"):
        assert after[name] == before[name], name
    # Ties are broken differently in forests (as above), and a gradient of 0 changes the solver's last digits.
    for name in (
        "dci_disentanglement", "dci_informativeness", "dci_forest_disentanglement",
        "dci_forest_informativeness", "beta_vae", "beta_vae_standardised", "explicitness",
    ):  # fmt: skip
        assert after[name] == pytest.approx(before[name], abs=0.01), name
    # The entropy is now divided by ln 5 instead of ln 4.
    for name in ("dci_completeness", "dci_forest_completeness"):
        expected = 1 - (1 - before[name]) * np.log(4) / np.log(5)
        assert after[name] == pytest.approx(expected, abs=0.01)
    # In disentanglement_lib a dead code has modularity 0.
    assert after["modularity"] == pytest.approx(4 / 5 * before["modularity"], abs=1e-12)


def test_a_dead_code_predicts_nothing_even_by_chance():
    codes = np.column_stack([UNEQUAL[:, 0], np.full(len(UNEQUAL), 0.1)])
    assert sap_threshold(Representation(codes, [False, False], UNEQUAL[:, :1]), 0, serial_map) == 1


def test_dead_codes_alone_score_0_or_chance():
    scores = all_scores(np.full((len(EQUAL), 2), 0.1), [False, True], EQUAL)
    for name in (
        "mig", "sap_threshold", "dci_disentanglement", "dci_completeness", "dci_forest_disentanglement",
        "dci_forest_completeness", "modularity", "modularity_live", "factor_vae",
    ):  # fmt: skip
        assert scores[name] == 0, name
    # Both codes are predicted by the same constant, up to the value that a solver prefers by rounding.
    assert 0 <= scores["sap"] < 5 * np.sqrt(0.25 / 1000)
    assert scores["explicitness"] == 0.5
    for name in (
        "factor_vae_unpruned", "beta_vae", "beta_vae_standardised", "dci_informativeness",
        "dci_forest_informativeness",
    ):  # fmt: skip
        assert scores[name] == pytest.approx(0.25, abs=CHANCE), name


def test_a_single_code_has_no_second_best():
    factor = UNEQUAL[:, 2]
    codes, factors = factor[:, None] * 1.0, EQUAL[: len(UNEQUAL)].copy()
    factors[:, 0] = factor
    single = Representation(codes, [False], factors[:, :1])
    assert mig(single, serial_map) == pytest.approx(1, abs=1e-12)
    assert sap_threshold(single, 0, serial_map) == 1
    assert sap(Representation(codes, [True], factors[:, :1]), 0, serial_map) == 1
    assert dci(single, 0, serial_map) == DCI(1, 1, 1)
    assert dci_forest(single, 0, serial_map) == DCI(1, 1, 1)
    assert explicitness(single, 0, serial_map) == 1
    assert modularity(single, serial_map) == 1
    assert factor_vae(single, 0, serial_map) == 1
    assert beta_vae(single, 0, serial_map) == 1


def test_a_single_code_of_four_factors_predicts_one():
    single = Representation(EQUAL[:, :1] * 1.0, [False], EQUAL)
    assert factor_vae(single, 0, serial_map) == pytest.approx(0.25, abs=CHANCE)
    # Its own factor is always recognised, and one of the other three is guessed.
    expected = 1 / 4 + 3 / 4 * 1 / 3
    assert beta_vae(single, 0, serial_map) == pytest.approx(expected, abs=CHANCE)


@pytest.mark.rig
def test_only_values_that_occur_count(before: dict[str, float]):
    spaced_and_constant = np.insert(UNEQUAL * 7 + 2, 2, 3, axis=1)
    assert all_scores(noisy(), CONTINUOUS, spaced_and_constant) == before
    with pytest.raises(DataError, match="none has more than one value") as caught:
        mig(Representation(noisy(), CONTINUOUS, np.full_like(UNEQUAL, 2)), serial_map)
    assert "\n" not in str(caught.value)


@pytest.mark.rig
def test_any_number_of_processes_computes_the_same_bits():
    codes, factors = np.column_stack([noisy(), UNEQUAL[:, 1]])[:600], UNEQUAL[:600]
    one, two, three = (
        all_scores(codes, [*CONTINUOUS, True], factors, m)
        for m in (serial_map, parallel_map(2), parallel_map(3))
    )
    assert two == one
    assert three == one
