"""The largest inner products of each query with the rows of a bank, exactly and in blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config

# high and wide enough for matrix products at full speed; a tile of similarities stays in cache while it is searched
_TILE_ROWS, _TILE_COLUMNS = 1024, 4096
# candidates are moved together where they, with the gaps at the ends of rows, are at most this share of a tile
_FEW = 1 / 8


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
    similarities = np.full((len(queries), n_neighbors), -np.inf, dtype=queries.dtype)
    indices = np.zeros(similarities.shape, dtype=np.intp)
    for rows, columns, found in _products(queries, bank, 2 * queries.dtype.itemsize + 24):
        _improve(similarities[rows], indices[rows], found, columns.start)
    return similarities, indices


def largest_products(queries: NDArray, bank: NDArray, n_neighbors: int) -> NDArray:
    """The similarities of `most_similar` alone, in no order and so in less time.

    Parameters
    ----------
    queries : ndarray of shape (n, d)
    bank : ndarray of shape (m, d)
    n_neighbors : int
        At most m.

    Returns
    -------
    ndarray of shape (n, n_neighbors)
        In the floating type of `queries`.

    Notes
    -----
    O(n m d) time. Temporaries stay within scikit-learn's ``working_memory``.
    """
    largest = np.full((len(queries), n_neighbors), -np.inf, dtype=queries.dtype)
    for rows, columns, found in _products(queries, bank, queries.dtype.itemsize + 9):
        _enlarge(largest[rows], found, columns.start)
    return largest


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


def _products(queries: NDArray, bank: NDArray, bytes_per_entry: int) -> Iterator[tuple[slice, slice, NDArray]]:
    """The tiles of ``queries @ bank.T``, each written over the one before."""
    buffer = None
    for rows, columns in tiles(len(queries), len(bank), bytes_per_entry):
        shape = rows.stop - rows.start, columns.stop - columns.start
        if buffer is None:  # no later tile is larger
            buffer = np.empty(shape[0] * shape[1], dtype=queries.dtype)
        found = buffer[: shape[0] * shape[1]].reshape(shape)
        yield rows, columns, np.matmul(queries[rows], bank[columns].T.astype(queries.dtype, copy=False), out=found)


def _enlarge(best: NDArray, found: NDArray, start: int) -> None:
    """Let the columns of `found`, bank rows `start` onwards, into `best`, in place."""
    k = best.shape[1]
    candidates = _candidates(found, best.min(axis=1), k, start)
    touched, new, _ = (np.arange(len(best)), found, None) if candidates is None else candidates
    pool = np.concatenate([best[touched], new], axis=1)
    surplus = pool.shape[1] - k
    pool.partition(surplus, axis=1)
    best[touched] = pool[:, surplus:]


def _improve(best: NDArray, places: NDArray, found: NDArray, start: int) -> None:
    """`_enlarge` that keeps `best` sorted and the `places` of its entries beside it."""
    k, width = best.shape[1], found.shape[1]
    candidates = _candidates(found, best[:, -1], k, start)
    if candidates is None:
        candidates = np.arange(len(best)), found, np.broadcast_to(np.arange(width), found.shape)
    touched, new, columns = candidates
    if touched.size == 0:
        return
    new_places = start + columns
    kept = min(start, k)
    if kept:
        new = np.concatenate([best[touched, :kept], new], axis=1)
        new_places = np.concatenate([places[touched, :kept], new_places], axis=1)
    n_kept = min(k, new.shape[1])
    best[touched, :n_kept], places[touched, :n_kept] = _largest(new, new_places, n_kept)


def _candidates(found: NDArray, kth: NDArray, k: int, start: int) -> tuple[NDArray, NDArray, NDArray] | None:
    """Entries of `found`, bank rows `start` onwards, that may be among the k largest of their row.

    Few of them are good enough, and a comparison finds these many times faster than a selection would.

    Parameters
    ----------
    found : ndarray of shape (n, width)
    kth : ndarray of shape (n,)
        The k-th largest so far; of entries that equal it the earlier ones stay.

    Returns
    -------
    rows : ndarray of shape (n_rows,)
        Those that have candidates.
    values, columns : ndarray of shape (n_rows, most)
        The candidates of each row moved to its front, -inf behind them.
    None
        If they are too many to be worth moving.
    """
    n, width = found.shape
    if start >= k:
        good = found > kth[:, None]
    elif start == 0 and 4 * k <= width:
        good = found >= _lower_bound(found, k)
    else:
        return None
    hits = _positions(good, most=int(_FEW * good.size))
    if hits is None:
        return None
    counts = np.bincount(hits // width, minlength=n)
    touched, most = np.flatnonzero(counts), counts.max(initial=0)
    if touched.size * most > _FEW * found.size:
        return None
    counts = counts[touched]
    rows = np.repeat(np.arange(touched.size), counts)
    slots = np.arange(hits.size) - np.repeat(np.cumsum(counts) - counts, counts)
    values = np.full((touched.size, most), -np.inf, dtype=found.dtype)
    columns = np.zeros(values.shape, dtype=np.intp)
    values[rows, slots], columns[rows, slots] = found.ravel()[hits], hits % width
    return touched, values, columns


def _positions(good: NDArray, most: int) -> NDArray | None:
    """`numpy.flatnonzero`, where few are: eight at a time are passed over. None if they are more than `most`."""
    good = good.reshape(-1)
    n_whole = good.size // 8 * 8
    eights = np.flatnonzero(good[:n_whole].view(np.uint64) != 0)
    found = good[:n_whole].reshape(-1, 8)[eights]
    rest = np.flatnonzero(good[n_whole:])
    if np.count_nonzero(found) + rest.size > most:
        return None
    rows, columns = np.nonzero(found)
    return np.concatenate([8 * eights[rows] + columns, n_whole + rest])


def _lower_bound(found: NDArray, k: int) -> NDArray:
    """(n, 1), at most the k-th largest of each row: the k-th largest of the maxima of 2 k groups of columns."""
    size = found.shape[1] // (2 * k)
    maxima = found[:, : 2 * k * size].reshape(len(found), size, 2 * k).max(axis=1)
    return np.partition(maxima, k, axis=1)[:, k, None]


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
