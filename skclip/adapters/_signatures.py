"""Pictures compared by their class distributions: signatures, their divergences, and the range they are put in."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from skclip.utils._arrays import row_batches
from skclip.utils._moments import class_sums
from skclip.utils._neighbors import tiles

# logarithms of the signatures of unit rows, (n, d) -> (n, C)
Signature = Callable[[NDArray], NDArray]

# pairs of so many support pictures with all others tell the ranges
_MOST_MEASURED = 8192


class Ranges(NamedTuple):
    """Smallest and largest affinity, and smallest and largest divergence, of queries and support pictures."""

    affinity: tuple[float, float]
    divergence: tuple[float, float]

    @property
    def slope(self) -> float:
        """What divergences are multiplied by; 0 where they are all equal and so tell nothing."""
        width = self.divergence[1] - self.divergence[0]
        return (self.affinity[1] - self.affinity[0]) / width if width > 0.0 else 0.0


class Apart(NamedTuple):
    """Pictures that must not meet themselves: equal numbers are one picture."""

    queries: NDArray  # (n,)
    keys: NDArray  # (m,)

    def own(self, rows: slice, columns: slice) -> NDArray:
        """Whether query and key are one picture, (n_rows, n_columns)."""
        return self.queries[rows, None] == self.keys[columns]


def text_signature(prototypes: NDArray, temperature: float) -> Signature:
    """``log softmax(x T^T / tau)``, (n, K), float64: SuS-X (ICCV 2023), section 3.2, and CapS-Adapter as published.

    Parameters
    ----------
    prototypes : ndarray of shape (K, d)
        Unit rows, T.
    temperature : float
        tau.
    """
    scaled = prototypes.T.astype(np.float64) / temperature

    def log_signatures(rows: NDArray) -> NDArray:
        return log_softmax(rows.astype(np.float64, copy=False) @ scaled, axis=1)

    return log_signatures


def feature_signature(temperature: float) -> Signature:
    """``log softmax(x / tau)`` over the coordinates of x, (n, d), float64: what the released code of CapS-Adapter
    computes, in which text plays no part."""

    def log_signatures(rows: NDArray) -> NDArray:
        return log_softmax(rows.astype(np.float64, copy=False) / temperature, axis=1)

    return log_signatures


def divergences(log_queries: NDArray, log_keys: NDArray) -> NDArray:
    """``KL(q_i || s_j) = q_i . log q_i - q_i . log s_j``, (n, m), by one matrix product."""
    queries = np.exp(log_queries)
    own = np.einsum("ic,ic->i", queries, log_queries)
    return np.maximum(own[:, None] - queries @ log_keys.T, 0.0)  # rounding alone makes it negative


def signature_sums(rows: NDArray, signature: Signature, codes: NDArray, weights: NDArray, n_classes: int) -> NDArray:
    """``sum_j w_j log s_j onehot(y_j)``, (K, C): all that the divergences of a query, summed by class, need of the
    support.

    Parameters
    ----------
    rows : ndarray of shape (m, d)
        Unit rows.
    signature : callable
        As `text_signature` makes them.
    codes, weights : ndarray of shape (m,)
    n_classes : int
    """
    sums = np.zeros((n_classes, signature(rows[:1]).shape[1]))
    for part in row_batches(len(rows), 32 * (n_classes + rows.shape[1])):
        sums += class_sums(signature(rows[part]), codes[part], n_classes, weights[part])
    return sums


def divergence_sums(log_queries: NDArray, sums: NDArray, counts: NDArray) -> NDArray:
    """``sum_j w_j KL(q_i || s_j) onehot(y_j)``, (n, K).

    A divergence is linear in the logarithm of the support's signature, so the sum over the pictures of a class is one
    product with the sum of their logarithms: O(n K C), whatever the number of pictures.

    Parameters
    ----------
    log_queries : ndarray of shape (n, C)
    sums : ndarray of shape (K, C)
        Those of `signature_sums`.
    counts : ndarray of shape (K,)
        Sum of the weights of each class.
    """
    queries = np.exp(log_queries)
    own = np.einsum("ic,ic->i", queries, log_queries)
    return own[:, None] * counts - queries @ sums.T


def divergence_logits(totals: NDArray, counts: NDArray, ranges: Ranges) -> NDArray:
    """``-sum_j w_j M'_ij onehot(y_j)``, (n, K), where M' is the divergence moved from its range into that of the
    affinities.

    Parameters
    ----------
    totals : ndarray of shape (n, K)
        Those of `divergence_sums`.
    counts : ndarray of shape (K,)
    ranges : Ranges
    """
    offset = ranges.affinity[0] - ranges.slope * ranges.divergence[0]
    return -(offset * counts + ranges.slope * totals)


def affinity_range(queries: NDArray, keys: NDArray, apart: Apart | None = None) -> tuple[float, float]:
    """Smallest and largest inner product of a query with a key.

    Parameters
    ----------
    queries : ndarray of shape (n, d)
    keys : ndarray of shape (m, d)
    apart : Apart, default=None
        Pairs to leave out.
    """
    keys = keys.astype(queries.dtype, copy=False)
    return _extremes(lambda rows, columns: queries[rows] @ keys[columns].T, len(queries), len(keys), apart)


def divergence_range(
    queries: NDArray, keys: NDArray, signature: Signature, apart: Apart | None = None
) -> tuple[float, float]:
    """Smallest and largest ``KL(q_i || s_j)`` of a query and a key; parameters as in `affinity_range`."""
    log_queries = signature(queries)

    def values(rows: slice, columns: slice) -> NDArray:
        return divergences(log_queries[rows], signature(keys[columns]))

    return _extremes(values, len(queries), len(keys), apart)


def spread_out(n: int, most: int = _MOST_MEASURED) -> NDArray:
    """At most `most` of the positions 0..n-1, evenly spaced."""
    return np.linspace(0, n - 1, min(n, most)).astype(np.intp)


def _extremes(
    values: Callable[[slice, slice], NDArray], n_queries: int, n_keys: int, apart: Apart | None
) -> tuple[float, float]:
    """Smallest and largest entry of a matrix that is made tile by tile; 0, 0 where no pair is left."""
    low, high = np.inf, -np.inf
    # the keys in the outer loop: their signatures are computed once as long as the queries fit into one tile
    for columns, rows in tiles(n_keys, n_queries, 24):
        tile = values(rows, columns)
        kept = True if apart is None else ~apart.own(rows, columns)
        low = min(low, float(tile.min(initial=np.inf, where=kept)))
        high = max(high, float(tile.max(initial=-np.inf, where=kept)))
    return (low, high) if low <= high else (0.0, 0.0)
