"""Random numbers as pure functions of (seed, purpose, index): nothing to save, nothing to restore.

All come from the raw words of Philox 4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"), a counter-based generator: any part of a stream is reached by setting the counter. NumPy
promises the raw words of a bit generator for good, though not what its distributions make of them.
"""

import hashlib

import numpy as np


def _key(seed: int, purpose: str) -> np.ndarray:
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return np.frombuffer(digest[:16], dtype="<u8")


def uniforms(seed: int, purpose: str, start: int, rows: int, width: int) -> np.ndarray:
    """Rows `start` to `start + rows` of an endless table of uniforms on the open interval (0, 1).

    Returns:
        float64 [rows, width]; a row is the same however the table is cut into calls.
    """
    blocks = -(-width // 4)  # the counter moves in blocks of four words, so a row starts on a block
    bits = np.random.Philox(key=_key(seed, purpose))
    bits.advance(start * blocks)
    words = bits.random_raw(rows * blocks * 4).reshape(rows, blocks * 4)[:, :width]
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def permutation(seed: int, purpose: str, index: int, size: int) -> np.ndarray:
    """The `index`-th random order of `range(size)`, int64 [size]."""
    words = np.random.Philox(key=_key(seed, f"{purpose}/{index}")).random_raw(size)
    return np.argsort(words, kind="stable")


def torch_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for torch's generator, for weights, where torch's own initialisers draw."""
    return int(_key(seed, purpose)[0] >> np.uint64(1))
