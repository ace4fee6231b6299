"""The rows of a bank that are most similar to each query, exactly and in blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config

# wide enough for matrix products at full speed; a tile of similarities stays in cache while it is searched
_TILE_ROWS, _TILE_COLUMNS = 512, 8192
# columns whose maximum stands for all of them in the first guess at the k-th largest
_GROUP = 64


def most_similar(queries: NDArray, bank: NDArray, n_neighbors: int) -> tuple[NDArray, NDArray]:
    """The `n_neighbors` largest inner products of each query with the rows of `bank`.

    Parameters
    ----------
    queries : ndarray of shape (n, d)
    bank : ndarray of shape (m, d)
        Unit rows where cosines are meant, as for `queries`.
    n_neighbors : int
        At most m.

    Returns
    -------
    similarities : ndarray of shape (n, n_neighbors)
        Descending, in the floating type of `queries`.
    indices : ndarray of shape (n, n_neighbors), intp
        Rows of `bank`; of equal similarities the lower index comes first.

    Notes
    -----
    O(n m d) time. Temporaries stay within scikit-learn's ``working_memory``.
    """
    n_queries = len(queries)
    similarities = np.full((n_queries, n_neighbors), -np.inf, dtype=queries.dtype)
    indices = np.zeros((n_queries, n_neighbors), dtype=np.intp)
    for rows, columns in tiles(n_queries, len(bank), queries.dtype.itemsize + 8):
        found = queries[rows] @ bank[columns].T.astype(queries.dtype, copy=False)
        _improve(similarities[rows], indices[rows], found, columns.start)
    return similarities, indices


def tiles(n_rows: int, n_columns: int, bytes_per_entry: int) -> Iterator[tuple[slice, slice]]:
    """Slices of rows and of columns that cover a matrix, row block by row block, columns ascending.

    A tile holds at most scikit-learn's ``working_memory``.
    """
    most = max(1, int(get_config()["working_memory"] * 2**20) // bytes_per_entry)
    width = min(_TILE_COLUMNS, most, max(1, n_columns))
    height = max(1, min(_TILE_ROWS * _TILE_COLUMNS, most) // width)
    for top in range(0, n_rows, height):
        for left in range(0, n_columns, width):
            yield slice(top, min(top + height, n_rows)), slice(left, min(left + width, n_columns))


def _improve(best: NDArray, places: NDArray, found: NDArray, start: int) -> None:
    """Let the columns of `found`, bank rows `start` onwards, into `best` and `places`, in place.

    Few of them are good enough, and a comparison finds these many times faster than a selection would.
    """
    k, width = best.shape[1], found.shape[1]
    good = None
    if start >= k:
        good = found > best[:, -1:]  # of equal similarities the earlier ones stay
    elif start == 0 and k <= width // _GROUP // 2:
        good = found >= _lower_bound(found, k)
    if good is not None and np.count_nonzero(good) <= found.size // 8:
        touched = np.flatnonzero(good.any(axis=1))
        new, new_places = _gather(found[touched], good[touched], start)
    else:
        touched = np.arange(len(best))
        new, new_places = found, np.broadcast_to(np.arange(start, start + width), found.shape)
    if touched.size == 0:
        return
    kept = min(start, k)
    if kept:
        new = np.concatenate([best[touched, :kept], new], axis=1)
        new_places = np.concatenate([places[touched, :kept], new_places], axis=1)
    n_kept = min(k, new.shape[1])
    best[touched, :n_kept], places[touched, :n_kept] = _largest(new, new_places, n_kept)


def _gather(found: NDArray, good: NDArray, start: int) -> tuple[NDArray, NDArray]:
    """The good entries of each row moved to its front, -inf behind them, and their columns + `start`."""
    counts = np.count_nonzero(good, axis=1)
    hits = np.flatnonzero(good)
    rows = np.repeat(np.arange(len(found)), counts)
    slots = np.arange(hits.size) - np.repeat(np.cumsum(counts) - counts, counts)
    values = np.full((len(found), counts.max(initial=0)), -np.inf, dtype=found.dtype)
    columns = np.zeros(values.shape, dtype=np.intp)
    values[rows, slots], columns[rows, slots] = found.ravel()[hits], start + hits % found.shape[1]
    return values, columns


def _lower_bound(found: NDArray, k: int) -> NDArray:
    """(n, 1), at most the k-th largest of each row: the k-th largest of the maxima of groups of columns."""
    n_groups = found.shape[1] // _GROUP
    maxima = found[:, : n_groups * _GROUP].reshape(len(found), n_groups, _GROUP).max(axis=2)
    return np.partition(maxima, n_groups - k, axis=1)[:, n_groups - k, None]


def _largest(values: NDArray, places: NDArray, k: int) -> tuple[NDArray, NDArray]:
    """The k largest of each row, descending, and their `places`, which ascend among equals."""
    width = values.shape[1]
    if k < width:
        chosen = np.argpartition(values, width - k, axis=1)[:, width - k :]
        kth = np.take_along_axis(values, chosen, axis=1).min(axis=1, keepdims=True)
        # argpartition takes any of those that equal the k-th: the first are wanted
        for row in np.flatnonzero(np.count_nonzero(values >= kth, axis=1) > k):
            chosen[row] = np.argsort(-values[row], kind="stable")[:k]
        chosen.sort(axis=1)
        values, places = np.take_along_axis(values, chosen, axis=1), np.take_along_axis(places, chosen, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(places, order, axis=1)
