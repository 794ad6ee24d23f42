"""What the scores of disentanglement are computed from: the codes of images whose factors are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from infogan_dist.errors import DataError
from infogan_dist.rng import permutation

# Images, votes or pairs that a classifier is trained and tested on, at most (Locatello et al. 2019).
TRAIN_SIZE, TEST_SIZE = 10_000, 5_000


@dataclass(frozen=True, eq=False)
class Representation:
    """The codes that Q infers from N images, and the factors of variation that the images were created from.

    A factor with one value only carries no information and is ignored. A code with one value only is dead: no
    factor can be predicted from it.

    Attributes:
        codes: float64 [N, D], finite, N >= 2; a column per code variable, with category numbers where
            `discrete[i]` is true.
        discrete: D flags.
        factors: int64 [N, K]; a column per factor, with values 0, 1, ...
    """

    codes: np.ndarray
    discrete: Sequence[bool]
    factors: np.ndarray

    @cached_property
    def varying_factors(self) -> np.ndarray:
        """The factors with more than one value, renumbered so that each has all values 0, 1, ..., n - 1.

        Raises:
            DataError: no factor varies.
        """
        columns = [np.unique(f, return_inverse=True)[1] for f in self.factors.T if f.min() < f.max()]
        if not columns:
            raise DataError(
                "factors: none has more than one value among these images; score images that differ"
            )
        return np.stack(columns, axis=1)

    @cached_property
    def standard_codes(self) -> np.ndarray:
        """Codes with mean 0 and variance 1, categories numbered from 0, dead codes 0; float64 [N, D]."""
        standard = np.zeros(self.codes.shape)
        for i, code in enumerate(self.codes.T):
            if self.discrete[i]:
                standard[:, i] = np.unique(code, return_inverse=True)[1]
            elif code.min() < code.max():
                standard[:, i] = (code - code.mean()) / code.std()
        return standard

    def features(self, i: int) -> np.ndarray:
        """Return the i-th code as the columns that a linear classifier needs, float64 [N, columns].

        They are the code as it is, or one indicator, 0 or 1, for each category that occurs.
        """
        code = self.codes[:, i]
        if not self.discrete[i]:
            return code[:, None]
        return (code[:, None] == np.unique(code)).astype(np.float64)

    @property
    def split_sizes(self) -> tuple[int, int]:
        """The numbers of training and of test images of `split`."""
        size = min(len(self.codes), TRAIN_SIZE + TEST_SIZE)
        train = size * TRAIN_SIZE // (TRAIN_SIZE + TEST_SIZE)
        return train, size - train

    def split(self, seed: int, purpose: str) -> tuple[np.ndarray, np.ndarray]:
        """Divide the images at random, two to one, into those that a classifier is trained and tested on.

        Args:
            seed: the run's.
            purpose: name of the random sequence.

        Returns:
            The indices of the training and of the test images, int64, at most `TRAIN_SIZE` and `TEST_SIZE`.
        """
        train, test = self.split_sizes
        order = permutation(seed, purpose, 0, len(self.codes))[: train + test]
        return order[:train], order[train:]
