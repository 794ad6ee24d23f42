"""Random numbers as pure functions of (seed, purpose, index), without a state to save and restore.

All come from the raw words of Philox 4x64, a counter-based generator (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"): any part of a sequence is reached by setting the counter. NumPy guarantees that
the raw words of a bit generator never change, but not the output of its distributions.
"""

import hashlib

import numpy as np


def _key(seed: int, purpose: str) -> np.ndarray:
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return np.frombuffer(digest[:16], dtype="<u8")


def uniforms(seed: int, purpose: str, start: int, rows: int, width: int) -> np.ndarray:
    """Return rows `start` to `start + rows` of an endless table of uniforms on the open interval (0, 1).

    Args:
        seed: the run's.
        purpose: name of the table.
        start, rows: index of the first row, and number of rows.
        width: columns of the table.

    Returns:
        float64 [rows, width]; a row does not depend on `start` and `rows`.
    """
    blocks = -(-width // 4)  # the counter moves in blocks of four words, so a row starts on a block
    bits = np.random.Philox(key=_key(seed, purpose))
    bits.advance(start * blocks)
    words = bits.random_raw(rows * blocks * 4).reshape(rows, blocks * 4)[:, :width]
    # The largest word would be rounded to exactly 1.
    return np.minimum(((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53, 1 - 2.0**-53)


def permutation(seed: int, purpose: str, index: int, size: int) -> np.ndarray:
    """Return the `index`-th random order of `range(size)`, int64 [size]."""
    words = np.random.Philox(key=_key(seed, f"{purpose}/{index}")).random_raw(size)
    return np.argsort(words, kind="stable")


def torch_seed(seed: int, purpose: str) -> int:
    """Return a 63-bit seed for torch's generator, with which torch's initialisers draw weights."""
    return int(_key(seed, purpose)[0] >> np.uint64(1))
