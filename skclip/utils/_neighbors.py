"""The rows of a bank that are most similar to each query, exactly and in blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config

# wide enough for matrix products at full speed; a tile of similarities stays in cache while it is searched
_TILE_ROWS, _TILE_COLUMNS = 512, 8192


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
    similarities = np.empty((n_queries, n_neighbors), dtype=queries.dtype)
    indices = np.empty((n_queries, n_neighbors), dtype=np.intp)
    for rows, columns in tiles(n_queries, len(bank), queries.dtype.itemsize + 8):
        found = queries[rows] @ bank[columns].T.astype(queries.dtype, copy=False)
        found, places = _largest(found, np.arange(columns.start, columns.stop), min(n_neighbors, found.shape[1]))
        if columns.start:
            found = np.concatenate([similarities[rows, : columns.start], found], axis=1)
            places = np.concatenate([indices[rows, : columns.start], places], axis=1)
            found, places = _largest(found, places, min(n_neighbors, found.shape[1]))
        similarities[rows, : found.shape[1]], indices[rows, : found.shape[1]] = found, places
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


def _largest(values: NDArray, places: NDArray, k: int) -> tuple[NDArray, NDArray]:
    """The k largest of each row, descending, and their `places` ((m,) or of the shape of `values`)."""
    width = values.shape[1]
    if k < width:
        chosen = np.argpartition(values, width - k, axis=1)[:, width - k :]
        kth = np.take_along_axis(values, chosen, axis=1).min(axis=1, keepdims=True)
        # argpartition takes any of those that equal the k-th: the first are wanted
        for row in np.flatnonzero(np.count_nonzero(values >= kth, axis=1) > k):
            chosen[row] = np.argsort(-values[row], kind="stable")[:k]
        chosen.sort(axis=1)
        values = np.take_along_axis(values, chosen, axis=1)
        places = places[chosen] if places.ndim == 1 else np.take_along_axis(places, chosen, axis=1)
    elif places.ndim == 1:
        places = np.broadcast_to(places, values.shape)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(places, order, axis=1)
