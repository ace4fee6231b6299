"""Key-value caches: labelled pictures that vote for their class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from skclip.utils._arrays import row_batches, unit_rows
from skclip.utils._neighbors import tiles
from skclip.utils._training import Training

Votes = Callable[[slice, slice], NDArray]
LeftOut = Callable[[slice], tuple[NDArray, NDArray]]


class Cache(NamedTuple):
    """Training pictures, sorted by class.

    Attributes
    ----------
    keys : ndarray of shape (m, d)
        Unit rows: the views of a picture averaged, then normalised.
    codes : ndarray of shape (m,)
        Class of each key, ascending.
    weights : ndarray of shape (m,)
        How often each key counts.
    order : ndarray of shape (m,)
        Position of each key among the training pictures.
    n_classes : int
        K.
    """

    keys: NDArray
    codes: NDArray
    weights: NDArray
    order: NDArray
    n_classes: int

    @classmethod
    def of(cls, training: Training, n_classes: int) -> Cache:
        n_pictures = len(training.codes)
        views = training.X.reshape(n_pictures, training.n_views, -1)
        order = np.argsort(training.codes, kind="stable")
        keys = np.empty((n_pictures, views.shape[2]), dtype=views.dtype)
        for part in row_batches(n_pictures, 4 * views.shape[1] * views.shape[2] * views.itemsize):
            chosen = views[order[part]]
            keys[part] = unit_rows(chosen[:, 0] if training.n_views == 1 else chosen.mean(axis=1))
        weights = np.ones(n_pictures) if training.weights is None else training.weights[order]
        return cls(keys, training.codes[order], weights, order, n_classes)

    def joined(self, other: Cache) -> Cache:
        """Both caches in one, the keys of `other` behind those of the same class."""
        codes = np.concatenate([self.codes, other.codes])
        order = np.argsort(codes, kind="stable")
        keys, weights = np.concatenate([self.keys, other.keys]), np.concatenate([self.weights, other.weights])
        return Cache(keys[order], codes[order], weights[order], order, self.n_classes)

    def counts(self) -> NDArray:
        """Weight of all keys of each class, (K,)."""
        return np.bincount(self.codes, weights=self.weights, minlength=self.n_classes)

    def normalized(self) -> Cache:
        """The same keys with weights that sum to 1 in every class."""
        return self._replace(weights=self.weights / self.counts()[self.codes])

    def starts(self) -> NDArray:
        """First key of each class and, last, the number of keys: (K + 1,)."""
        return np.searchsorted(self.codes, np.arange(self.n_classes + 1))


def sum_votes(votes: Votes, n_queries: int, codes: NDArray, weights: NDArray, n_classes: int) -> NDArray:
    """Votes of all keys, summed by class: (n, K), float64.

    Parameters
    ----------
    votes : callable
        ``votes(rows, columns)`` is the (n_rows, n_columns) array of votes of a slice of keys for a slice of
        queries. Called tile by tile, so that the (n, m) matrix never exists. In Fortran order it is summed as it is.
    n_queries : int
        n.
    codes, weights : ndarray of shape (m,)
        Class (ascending) and weight of each key.
    n_classes : int
        K.
    """
    totals = np.zeros((n_queries, n_classes))
    for rows, columns in tiles(n_queries, len(codes), 24):
        tile = votes(rows, columns)
        present = slice(codes[columns.start], codes[columns.stop - 1] + 1)
        totals[rows, present] += (_indicators(codes[columns], weights[columns].astype(tile.dtype), present) @ tile.T).T
    return totals


def affinity_votes(affinities: NDArray, beta: float) -> NDArray:
    """``exp(-beta (1 - a))``, in place: Tip-Adapter (ECCV 2022), equation (4)."""
    affinities -= 1.0
    affinities *= beta
    return np.exp(affinities, out=affinities)


def cache_logits(rows: NDArray, cache: Cache, beta: float) -> NDArray:
    """``sum_i w_i exp(-beta (1 - x . key_i)) onehot(y_i)`` of unit rows, (n, K), float64."""

    def votes(queries: slice, columns: slice) -> NDArray:
        keys = cache.keys[columns].astype(rows.dtype, copy=False)
        return affinity_votes(keys @ rows[queries].T, beta).T

    return sum_votes(votes, len(rows), cache.codes, cache.weights, cache.n_classes)


def left_out_logits(
    queries: NDArray, left_out: LeftOut, cache: Cache, betas: NDArray
) -> Iterator[tuple[slice, Iterator[NDArray]]]:
    """Cache logits of training pictures, each without some of the keys.

    Parameters
    ----------
    queries : ndarray of shape (n, d)
        Unit rows.
    left_out : callable
        ``left_out(part)`` is two arrays: positions in this slice of the queries, and the key that each does without,
        at most one of a class. What is left of the class is scaled up to the whole.
    cache : Cache
    betas : ndarray of shape (n_betas,)

    Yields
    ------
    part : slice
        Of the queries, as many as working memory allows.
    logits : iterator of ndarray of shape (n_part, K)
        One for each beta; the products with the keys are taken once.
    """
    counts = cache.counts()
    keys = cache.keys.astype(queries.dtype, copy=False)
    for part in row_batches(len(queries), len(keys) * 3 * queries.itemsize + cache.n_classes * 48):
        affinities = keys @ queries[part].T
        rows, without = left_out(part)
        affinities[without, rows] = -np.inf
        classes = cache.codes[without]
        lift = np.ones((affinities.shape[1], cache.n_classes))
        lift[rows, classes] = counts[classes] / (counts[classes] - cache.weights[without])
        yield part, (lift * _sum_affinity_votes(affinities, cache, beta) for beta in betas)


def _sum_affinity_votes(affinities: NDArray, cache: Cache, beta: float) -> NDArray:
    """Votes of given affinities, (m, n), summed by class."""

    def votes(queries: slice, columns: slice) -> NDArray:
        return affinity_votes(affinities[columns, queries].copy(), beta).T

    return sum_votes(votes, affinities.shape[1], cache.codes, cache.weights, cache.n_classes)


def _indicators(codes: NDArray, weights: NDArray, present: slice) -> csr_array:
    """(classes of `present`, keys): the weight of each key in the row of its class."""
    starts = np.searchsorted(codes, np.arange(present.start, present.stop + 1))
    return csr_array((weights, np.arange(len(codes)), starts), shape=(len(starts) - 1, len(codes)))
