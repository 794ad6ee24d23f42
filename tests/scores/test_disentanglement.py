"""Scores of disentanglement on representations whose scores are known."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy.linalg import hadamard

from infogan_dist.errors import DataError
from infogan_dist.rng import permutation
from infogan_dist.scores import disentanglement as scores
from infogan_dist.scores.disentanglement import (
    beta_vae,
    dci,
    disentanglement,
    factor_vae,
    mig,
    modularity,
    mutual_information,
    sap,
)
from infogan_dist.scores.distributed_map import DistributedMap, serial_map

NAMES = [
    "mig", "sap", "dci_disentanglement", "dci_completeness", "dci_informativeness",
    "factor_vae", "beta_vae", "modularity",
]  # fmt: skip
# 5 standard deviations of a share of 1,000, both the classifier and its judges being drawn: measured on 24
# seeds it is 1.2 times the binomial's, .0137
CHANCE = 5 * 1.2 * np.sqrt(0.25 * 0.75 / 1000)


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    """Fewer votes and points: these tests ask for no second decimal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "FITTED", 2000)
        patch.setattr(scores, "JUDGED", 1000)
        yield


@pytest.fixture(scope="module")
def before() -> dict[str, float]:
    """The scores of `noisy`."""
    return table(noisy(), CONTINUOUS, UNEQUAL)


def grid(sizes: tuple[int, ...], copies: int) -> np.ndarray:
    """Every combination of factors as often as any other: they are exactly independent."""
    return np.tile(np.array(list(itertools.product(*map(range, sizes)))), (copies, 1))


UNEQUAL = grid((2, 3, 4, 5), 25)  # 3,000 images
EQUAL = grid((4, 4, 4, 4), 12)  # 3,072 images
CONTINUOUS = [False] * 4


def noise(seed: int = 0, shape: tuple[int, ...] = UNEQUAL.shape) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def noisy() -> np.ndarray:
    """Each factor read with an error: no score is at its end."""
    return UNEQUAL + 0.4 * noise()


def table(
    codes: np.ndarray, discrete: list[bool], factors: np.ndarray, distributed_map: DistributedMap = serial_map
) -> dict[str, float]:
    return dict(disentanglement(codes, discrete, factors, 0, distributed_map))


def processes(world: int) -> DistributedMap:
    """What `world` processes make: each its own rows, the others zero; their sum."""

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


def test_information_is_that_of_the_contingency_table_in_nats():
    factors = UNEQUAL[:, :3]
    codes = np.stack([noisy()[:, 0], noisy()[:, 1], UNEQUAL[:, 2] + 10.0 * UNEQUAL[:, 0]], axis=1)
    found = mutual_information(codes, [False, False, True], factors, serial_map)
    for i, k in itertools.product(range(3), range(3)):
        values = np.unique(codes[:, i])
        edges = np.histogram_bin_edges(codes[:, i], 20) if i < 2 else np.append(values, np.inf)
        joint = np.histogram2d(codes[:, i], factors[:, k], [edges, np.arange(6) - 0.5])[0] / len(codes)
        expected = entropy(joint.sum(1)) + entropy(joint.sum(0)) - entropy(joint.ravel())
        assert found[i, k] == pytest.approx(expected, abs=1e-12)  # sums of entropies under 4 nats


def test_mig_and_modularity_by_hand():
    # Of eight images code 0 knows factor 0 and, of factor 1, as much as 3 of 4 right tell; code 1 knows
    # factor 1, and of factor 0 the same; code 2 is dead.
    factors = np.array([[0, 0], [0, 0], [0, 0], [0, 1], [1, 0], [1, 1], [1, 1], [1, 1]])
    codes = np.column_stack([factors * [1.0, -7.0], np.full(8, 0.1)])
    partly = np.log(2) - entropy(np.array([0.25, 0.75]))
    gap = (np.log(2) - partly) / np.log(2)
    assert mig(codes, [False] * 3, factors, serial_map) == pytest.approx(gap, abs=1e-12)
    expected = 1 - (partly / np.log(2)) ** 2  # of both live codes; N - 1 = 1
    assert modularity(codes, [False] * 3, factors, serial_map) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("category", [False, True])
def test_sap_by_hand(category: bool):
    # Code 0 is the factor; code 1 is right on 80% of images, and believed, though value 1 is rare: its share
    # does not count.
    factor = (np.arange(3000) % 10 == 0).astype(np.int64)
    wrong = np.random.default_rng(1).random(3000) < 0.2
    codes = np.stack([factor * 2.0 + 1, np.where(wrong, 1 - factor, factor) * 2.0 + 1], axis=1)
    judged = permutation(0, "sap", 0, 3000)[2000:]
    right = [1 - wrong[judged][factor[judged] == value].mean() for value in (0, 1)]
    found = sap(codes, [category] * 2, factor[:, None], 0, serial_map)
    assert found == pytest.approx(1 - np.mean(right), abs=1e-12)


def test_sap_takes_categories_one_by_one():
    category = np.arange(3000) % 6
    codes, factors = category[:, None] * 1.0, category[:, None] % 2
    assert sap(codes, [True], factors, 0, serial_map) == 1
    # One threshold cuts off one of three even categories: (1/3 + 1) / 2, 5 standard errors on 1,000 images
    assert sap(codes, [False], factors, 0, serial_map) == pytest.approx(2 / 3, abs=5 * 0.011)


def test_dci_by_hand():
    # Factor 0 is code 0; factor 1 is codes 0 and 1 together, each half of it; code 2 serves nobody.
    a, b, c = grid((2, 2, 2), 375).T
    codes, factors = np.stack([a, b, c], axis=1) * 1.0, np.stack([a, 2 * a + b], axis=1)
    found = dci(codes, [False] * 3, factors, 0, serial_map)
    importance = np.array([[1, 0.5], [0, 0.5], [0, 0]])
    serves = importance.sum(1)
    one_code = 1 - entropy(importance[0] / serves[0]) / np.log(2)
    # A forest's bootstrap weighs the halves by entropies near their maximum: an error of order 1 / 1,600
    assert found.disentanglement == pytest.approx((serves[0] * one_code + serves[1] * 1) / 2, abs=3e-3)
    assert found.completeness == pytest.approx(np.mean([1, 1 - np.log(2) / np.log(3)]), abs=3e-3)
    assert found.informativeness == 1


@pytest.mark.parametrize("category", [False, True])
def test_factors_themselves_score_1(category: bool):
    found = table(UNEQUAL * 1.0, [category] * 4, UNEQUAL)
    assert list(found) == NAMES
    chance = np.mean([1 - 1 / 2, 1 - 1 / 3, 1 - 1 / 4, 1 - 1 / 5])
    # Balanced accuracy at chance on 1,000 images has a standard error under .016; the mean of four, 5 errors
    assert found.pop("sap") == pytest.approx(chance, abs=0.04)
    for name, value in found.items():
        assert value == pytest.approx(1, abs=1e-12), name


def test_order_and_scale_of_codes_do_not_matter(before: dict[str, float]):
    codes, order = noisy(), [2, 0, 3, 1]
    moved = codes[:, order] * [-3, 0.1, 100, 1e6] + [7, -1, 1e6, 0.3]
    after = table(moved, CONTINUOUS, UNEQUAL)
    for name in NAMES:
        assert 0.1 < before[name] <= 1
        # Forests draw the order in which they look at codes, so that ties fall differently: up to ten images
        # of 1,000; elsewhere what rounds at a threshold
        assert after[name] == pytest.approx(before[name], abs=0.01 if "dci" in name else 1e-3), name


def test_the_numbers_of_categories_do_not_matter():
    read = np.where(np.random.default_rng(2).random(len(UNEQUAL)) < 0.6, 0, UNEQUAL[:, 3])
    codes = noisy()
    codes[:, 3] = read
    renamed = codes.copy()
    renamed[:, 3] = np.array([3, 0, 4, 1, 2])[read]
    discrete = [False, False, False, True]
    for score in (sap, factor_vae):
        assert score(renamed, discrete, UNEQUAL, 0, serial_map) == score(
            codes, discrete, UNEQUAL, 0, serial_map
        )
    alone_told = [beta_vae(c[:, 3:], [True], UNEQUAL, 0, serial_map) for c in (codes, renamed)]
    assert alone_told[0] == alone_told[1] < 1
    for score in (mig, modularity):
        same = score(codes, discrete, UNEQUAL, serial_map)
        assert score(renamed, discrete, UNEQUAL, serial_map) == pytest.approx(same, abs=1e-12)


def test_a_rotation_that_mixes_all_factors_alike_is_entangled():
    found = table((EQUAL - 1.5) @ hadamard(4) / 2, CONTINUOUS, EQUAL)
    # By symmetry every code says the same of every factor, exactly so on a full grid
    assert found["mig"] == pytest.approx(0, abs=1e-12)
    assert found["modularity"] == pytest.approx(0, abs=1e-12)
    # Fitted to a part: the gap of the two best of four codes that are alike, 5 standard errors of accuracy
    assert 0 <= found["sap"] < 5 * np.sqrt(0.25 / 1000)
    assert 0 <= found["dci_disentanglement"] < 0.01  # entropy is flat where shares are equal
    assert 0 <= found["dci_completeness"] < 0.01
    assert found["dci_informativeness"] > 0.95  # nothing is lost
    for name in ("factor_vae", "beta_vae"):
        assert found[name] == pytest.approx(0.25, abs=CHANCE)


def test_noise_scores_chance():
    found = table(noise(), CONTINUOUS, UNEQUAL)
    # Twice the mean of an information that chance serial_map gives, (20 - 1)(n - 1) / 2N, over H(n)
    chance = np.mean([19 * (n - 1) / (2 * len(UNEQUAL)) / np.log(n) for n in (2, 3, 4, 5)])
    assert 0 <= found["mig"] < 2 * chance
    assert 0 <= found["sap"] < 5 * np.sqrt(0.25 / 1000)
    assert 0 <= found["dci_disentanglement"] < 0.1
    # Classes are equal: 1/n each, 5 standard errors of the mean of four shares of 1,000
    right = np.mean([1 / n for n in (2, 3, 4, 5)])
    assert found["dci_informativeness"] == pytest.approx(right, abs=5 * 0.015 / 2)
    for name in ("factor_vae", "beta_vae"):
        assert found[name] == pytest.approx(0.25, abs=CHANCE)


def test_a_code_read_twice_leaves_no_gap():
    codes = np.repeat(noisy(), 2, axis=1)
    assert mig(codes, [False] * 8, UNEQUAL, serial_map) == 0
    assert sap(codes, [False] * 8, UNEQUAL, 0, serial_map) == 0
    assert modularity(codes, [False] * 8, UNEQUAL, serial_map) == modularity(
        noisy(), CONTINUOUS, UNEQUAL, serial_map
    )


@pytest.mark.parametrize("category", [False, True])
def test_a_dead_code_changes_nothing(category: bool, before: dict[str, float]):
    codes, discrete = noisy(), [*CONTINUOUS, category]
    dead = np.column_stack([codes, np.full(len(codes), 0.1)])  # .1: its mean is not exactly itself
    after = table(dead, discrete, UNEQUAL)
    for name in ("mig", "sap", "factor_vae", "modularity"):
        assert after[name] == before[name], name
    # Ties fall differently in forests (as above), and a gradient of 0 moves the solver's last digits
    for name in ("dci_disentanglement", "dci_informativeness", "beta_vae"):
        assert after[name] == pytest.approx(before[name], abs=0.01), name
    # Its entropy is now a share of ln 5, no longer of ln 4
    expected = 1 - (1 - before["dci_completeness"]) * np.log(4) / np.log(5)
    assert after["dci_completeness"] == pytest.approx(expected, abs=0.01)


def test_a_dead_code_does_not_even_guess():
    codes = np.column_stack([UNEQUAL[:, 0], np.full(len(UNEQUAL), 0.1)])
    assert sap(codes, [False, False], UNEQUAL[:, :1], 0, serial_map) == 1


def test_dead_codes_alone_say_nothing():
    found = table(np.full((len(EQUAL), 2), 0.1), [False, True], EQUAL)
    for name in ("mig", "sap", "dci_disentanglement", "dci_completeness", "modularity"):
        assert found[name] == 0, name
    for name in ("factor_vae", "beta_vae", "dci_informativeness"):
        assert found[name] == pytest.approx(0.25, abs=CHANCE), name


def test_one_code_has_no_second():
    factor = UNEQUAL[:, 2]
    codes, factors = factor[:, None] * 1.0, EQUAL[: len(UNEQUAL)].copy()
    factors[:, 0] = factor
    assert mig(codes, [False], factors[:, :1], serial_map) == pytest.approx(1, abs=1e-12)
    assert sap(codes, [False], factors[:, :1], 0, serial_map) == 1
    assert dci(codes, [False], factors[:, :1], 0, serial_map) == scores.DCI(1, 1, 1)
    assert modularity(codes, [False], factors[:, :1], serial_map) == 1
    assert factor_vae(codes, [False], factors[:, :1], 0, serial_map) == 1
    assert beta_vae(codes, [False], factors[:, :1], 0, serial_map) == 1


def test_one_code_of_four_factors_is_named_for_one():
    codes = EQUAL[:, :1] * 1.0
    assert factor_vae(codes, [False], EQUAL, 0, serial_map) == pytest.approx(0.25, abs=CHANCE)
    # Its own factor is told always, and of the other three one in three is guessed
    expected = 1 / 4 + 3 / 4 * 1 / 3
    assert beta_vae(codes, [False], EQUAL, 0, serial_map) == pytest.approx(expected, abs=CHANCE)


def test_only_the_values_that_occur_count(before: dict[str, float]):
    spaced_and_constant = np.insert(UNEQUAL * 7 + 2, 2, 3, axis=1)
    assert table(noisy(), CONTINUOUS, spaced_and_constant) == before
    with pytest.raises(DataError, match="none has more than one value") as caught:
        mig(noisy(), CONTINUOUS, np.full_like(UNEQUAL, 2), serial_map)
    assert "\n" not in str(caught.value)


def test_any_number_of_processes_gives_the_same_bits():
    codes, factors = np.column_stack([noisy(), UNEQUAL[:, 1]])[:600], UNEQUAL[:600]
    one, two, three = (
        table(codes, [*CONTINUOUS, True], factors, s) for s in (serial_map, processes(2), processes(3))
    )
    assert two == one
    assert three == one
