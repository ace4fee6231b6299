"""Class counts, class sums and one Gram matrix, gathered block by block.

Everything a shared-covariance Gaussian model needs from its rows is a sum over rows: the rows are read once,
in blocks, and chunks add up to the same model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.sparse import csr_array

from skclip.utils._arrays import unit_rows

# large enough for matrix products at full speed, small enough to stay within a few tens of megabytes
BLOCK_ROWS = 8192


@dataclass
class ClassMoments:
    """Sums over unit rows, per class and in all.

    Rows are shifted by a vector near their mean before they are summed: the Gram matrix then holds variances
    instead of the much larger squared mean, which float32 blocks could not resolve.

    Attributes
    ----------
    shift : ndarray of shape (d,)
        Fixed by the first rows seen.
    counts : ndarray of shape (K,)
        Sums of weights (numbers of rows, without weights).
    sums : ndarray of shape (K, d)
        Weighted sums of the shifted rows of each class.
    gram : ndarray of shape (d, d)
        Weighted sum of the outer products of the shifted rows.
    weight, squared_weight : float
        Sum of the weights and of their squares.
    resolution : float
        Machine epsilon of the products, 0 before any.
    """

    shift: NDArray
    counts: NDArray
    sums: NDArray
    gram: NDArray
    weight: float = 0.0
    squared_weight: float = 0.0
    resolution: float = 0.0

    @classmethod
    def empty(cls, n_classes: int, n_features: int) -> ClassMoments:
        return cls(
            shift=np.zeros(n_features),
            counts=np.zeros(n_classes),
            sums=np.zeros((n_classes, n_features)),
            gram=np.zeros((n_features, n_features)),
        )

    def add(self, X: NDArray, codes: NDArray, weights: NDArray | None = None, dtype: DTypeLike | None = None) -> None:
        """Add rows, normalised here.

        Parameters
        ----------
        X : ndarray of shape (n, d)
            Rows of any length; not modified.
        codes : ndarray of shape (n,)
            Class of each row, 0..K-1.
        weights : ndarray of shape (n,), default=None
            None counts every row once.
        dtype : dtype, default=None
            In which the products of a block are computed; None is that of `X`. Blocks add up in float64.
        """
        dtype = np.dtype(X.dtype if dtype is None else dtype)
        for rows, part in unit_blocks(X, dtype):
            if not self.resolution:
                self.shift = rows.mean(axis=0, dtype=np.float64)
            self.resolution = max(self.resolution, float(np.finfo(dtype).eps))
            rows -= self.shift.astype(dtype)
            block_weights = None if weights is None else weights[part].astype(dtype)
            self.sums += class_sums(rows, codes[part], len(self.counts), block_weights)
            weighted = rows if block_weights is None else rows * block_weights[:, None]
            self.gram += weighted.T @ rows
        self.counts += np.bincount(codes, weights=weights, minlength=len(self.counts))
        self.weight += float(len(X) if weights is None else weights.sum())
        self.squared_weight += float(len(X) if weights is None else np.square(weights).sum())

    def merged(self) -> ClassMoments:
        """Moments of the same rows as one class; shares its arrays with these."""
        return replace(self, counts=self.counts.sum(keepdims=True), sums=self.sums.sum(axis=0, keepdims=True))

    @property
    def inflation(self) -> float:
        """Factor that lifts weights to the effective number of rows, (sum w)^2 / sum w^2, where they sum to
        less.

        Whole-number weights are repeats and never sum to less: their factor is 1.
        """
        return max(1.0, self.weight / self.squared_weight)

    @property
    def n_samples(self) -> float:
        """N of the formulas: the sum of the weights, at least the effective number of rows."""
        return self.weight * self.inflation

    def centroid(self) -> NDArray:
        """Weighted mean of all rows, (d,)."""
        return self.shift + self.sums.sum(axis=0) / self.weight

    def means(self) -> NDArray:
        """Class means, (K, d), not re-normalised; those of classes without rows are the mean of all rows."""
        means = np.tile(self.centroid(), (len(self.counts), 1))
        present = self.counts > 0
        means[present] = self.shift + self.sums[present] / self.counts[present, None]
        return means

    def within(self) -> NDArray:
        """Scatter of the rows about the means of their classes, (d, d): total minus between."""
        return self.inflation * self.raw_within()

    def raw_within(self) -> NDArray:
        """The same with the weights as they are."""
        present = self.counts > 0
        scaled = self.sums[present] / np.sqrt(self.counts[present])[:, None]
        return self.gram - scaled.T @ scaled

    def total(self) -> NDArray:
        """Scatter of the rows about the mean of all rows, (d, d)."""
        total_sum = self.sums.sum(axis=0)
        return self.inflation * (self.gram - np.outer(total_sum, total_sum) / self.weight)

    def noise(self) -> tuple[NDArray, NDArray, bool]:
        """What the shared covariance is estimated from.

        Returns
        -------
        scatter : ndarray of shape (d, d)
            That of `within`; that of `total`, which bounds it, where no class has two different rows.
        centres : ndarray of shape (K, d)
            What the rows of each class are centred by.
        is_total : bool
            Whether it is the total.
        """
        within, total = self.within(), self.total()
        if np.trace(within) > 100.0 * self.resolution * np.trace(total):
            return within, self.means(), False
        return total, np.tile(self.centroid(), (len(self.counts), 1)), True


def unit_blocks(X: NDArray, dtype: DTypeLike) -> Iterator[tuple[NDArray, slice]]:
    """Blocks of unit rows of `X`, each a fresh array of `dtype`, with their place in `X`."""
    for start in range(0, len(X), BLOCK_ROWS):
        part = slice(start, min(start + BLOCK_ROWS, len(X)))
        yield unit_rows(X[part].astype(dtype, copy=False)), part


def class_sums(rows: NDArray, codes: NDArray, n_classes: int, weights: NDArray | None = None) -> NDArray:
    """Weighted sum of the rows of each class, (K, d), by a sparse one-hot product."""
    values = np.ones(len(rows), dtype=rows.dtype) if weights is None else weights
    one_hot = csr_array((values, (codes, np.arange(len(rows)))), shape=(n_classes, len(rows)))
    return one_hot @ rows
