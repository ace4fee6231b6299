"""Key-value caches: labelled pictures that vote for their class."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skclip.adapters._training import Training
from skclip.utils._arrays import unit_rows
from skclip.utils._neighbors import tiles

Votes = Callable[[slice, slice], NDArray]


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
        keys = unit_rows(views[:, 0] if training.n_views == 1 else views.mean(axis=1))
        weights = np.ones(n_pictures) if training.weights is None else training.weights
        order = np.argsort(training.codes, kind="stable")
        return cls(keys[order], training.codes[order], weights[order], order, n_classes)


def sum_votes(votes: Votes, n_queries: int, codes: NDArray, weights: NDArray, n_classes: int) -> NDArray:
    """Votes of all keys, summed by class: (n, K), float64.

    Parameters
    ----------
    votes : callable
        ``votes(rows, columns)`` is the fresh (n_rows, n_columns) array of votes of a slice of keys for a slice of
        queries. Called tile by tile, so that the (n, m) matrix never exists.
    n_queries : int
        n.
    codes, weights : ndarray of shape (m,)
        Class (ascending) and weight of each key.
    n_classes : int
        K.
    """
    totals = np.zeros((n_queries, n_classes))
    equal = bool(np.all(weights == 1.0))
    for rows, columns in tiles(n_queries, len(codes), 24):
        tile = votes(rows, columns)
        if not equal:
            tile *= weights[columns].astype(tile.dtype, copy=False)
        present, starts = np.unique(codes[columns], return_index=True)
        totals[rows, present] += np.add.reduceat(tile, starts, axis=1)
    return totals


def affinity_votes(affinities: NDArray, beta: float) -> NDArray:
    """``exp(-beta (1 - a))``, in place: Tip-Adapter (ECCV 2022), equation (4)."""
    affinities -= 1.0
    affinities *= beta
    return np.exp(affinities, out=affinities)


def cache_logits(rows: NDArray, cache: Cache, beta: float) -> NDArray:
    """``sum_i w_i exp(-beta (1 - x . key_i)) onehot(y_i)`` of unit rows, (n, K), float64."""
    keys = cache.keys.astype(rows.dtype, copy=False)

    def votes(queries: slice, columns: slice) -> NDArray:
        return affinity_votes(rows[queries] @ keys[columns].T, beta)

    return sum_votes(votes, len(rows), cache.codes, cache.weights, cache.n_classes)
