import hashlib

import numpy as np
import pytest

from infogan_dist.rng import permutation, torch_seed, uniforms


@pytest.mark.parametrize("width", [1, 4, 7])
def test_a_table_of_uniforms_may_be_divided_anywhere(width: int):
    table = uniforms(3, "p", 0, 20, width)
    parts = [uniforms(3, "p", start, rows, width) for start, rows in ((0, 7), (7, 1), (8, 12))]
    assert np.array_equal(table, np.concatenate(parts))


def test_uniforms_are_uniform_and_independent_between_purposes_and_seeds():
    n = 50_000
    a, b, c = (uniforms(s, p, 0, n, 1)[:, 0] for s, p in ((0, "a"), (0, "b"), (1, "a")))
    for u in (a, b, c):
        assert u.min() > 0
        assert u.max() < 1
        # 5 standard errors of the mean and of the variance of U(0, 1)
        assert abs(u.mean() - 0.5) < 5 / np.sqrt(12 * n)
        assert abs(u.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / n)
    for u, v in ((a, b), (a, c), (a[1:], a[:-1])):
        assert abs(np.corrcoef(u, v)[0, 1]) < 5 / np.sqrt(n)


def test_permutations_contain_each_number_once_and_differ_by_index():
    p, q = permutation(0, "x", 0, 100), permutation(0, "x", 1, 100)
    assert sorted(p) == sorted(q) == list(range(100))
    assert not np.array_equal(p, q)
    assert np.array_equal(p, permutation(0, "x", 0, 100))


def philox4x64(counter: int, key: tuple[int, int]) -> list[int]:
    """Ten rounds as in Salmon et al. 2011, in plain integers."""
    mask = 2**64 - 1
    c = [(counter >> 64 * i) & mask for i in range(4)]
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(second >> 64) ^ c[1] ^ k0, second & mask, (first >> 64) ^ c[3] ^ k1, first & mask]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return c


def test_random_numbers_are_philox_s_and_so_the_same_on_every_machine():
    digest = hashlib.sha256(b"5/shards/2").digest()
    key = (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little"))
    words = [w for i in range(3) for w in philox4x64(i + 1, key)]  # NumPy counts before it draws
    assert permutation(5, "shards", 2, 12).tolist() == sorted(range(12), key=lambda i: words[i])
    table = uniforms(5, "shards/2", 1, 2, 4)
    assert table.flatten().tolist() == [((w >> 11) + 0.5) * 2.0**-53 for w in words[4:]]
    assert torch_seed(5, "shards/2") == key[0] >> 1


def test_uniforms_are_below_one_for_every_word(monkeypatch: pytest.MonkeyPatch):
    class Largest:
        def __init__(self, key: object):
            pass

        def advance(self, count: int) -> None:
            pass

        def random_raw(self, count: int) -> np.ndarray:
            return np.full(count, 2**64 - 1, np.uint64)

    monkeypatch.setattr(np.random, "Philox", Largest)
    table = uniforms(0, "p", 0, 1, 4)
    assert (table < 1).all()
    assert (table > 1 - 1e-15).all()
