"""faiss as a search engine: an index built from the bank, and the indices that this process has at hand."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skclip.utils._neighbors import most_similar

FLAT = "Flat"

# an index is no fitted state: each process makes its own, and forgets it with the estimator it belongs to
_indices: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def import_faiss() -> Any:
    """The module faiss, or an ImportError that says how to get it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            'backend="faiss" needs the package faiss-cpu: pip install "skclip[faiss]". backend="exact" needs nothing.'
        ) from error
    return faiss


def build_index(bank: NDArray, factory: str) -> Any:
    """An index of inner products of the rows of `bank`, trained where its kind needs that.

    Raises
    ------
    ValueError
        If faiss does not know `factory`, or cannot train it on so few rows.
    """
    faiss = import_faiss()
    rows = np.ascontiguousarray(bank, dtype=np.float32)
    try:
        index = faiss.index_factory(rows.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
        index.add(rows)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"faiss_factory={factory!r} cannot index {len(rows)} rows of {rows.shape[1]}: {reason}"
        ) from error
    return index


def replace_index(owner: Any, bank: NDArray, factory: str | None) -> NDArray[np.uint8] | None:
    """Build the index of a fitted estimator and keep it at hand in this process; without `factory` forget the old one.

    Returns
    -------
    ndarray of uint8 or None
        What the estimator must keep for `index_of`: the trained index, None where there is none or where it is built
        as fast as it is read.
    """
    index = None if factory is None else build_index(bank, factory)
    with _lock:
        if index is None:
            _indices.pop(owner, None)
        else:
            _indices[owner] = index
    return None if index is None or factory == FLAT else import_faiss().serialize_index(index)


def index_of(owner: Any, bank: NDArray, kept: NDArray[np.uint8] | None, factory: str) -> Any:
    """The index of a fitted estimator: at hand, read from what was `kept`, or built again."""
    with _lock:
        # of another number of rows where the bank had to be taken back
        if owner not in _indices or _indices[owner].ntotal != len(bank):
            faiss = import_faiss()
            _indices[owner] = build_index(bank, factory) if kept is None else faiss.deserialize_index(np.array(kept))
        return _indices[owner]


def search_index(
    index: Any, queries: NDArray, bank: NDArray, n_neighbors: int, parameters: str | None
) -> tuple[NDArray, NDArray]:
    """As `most_similar`, by faiss; queries of which it finds fewer than `n_neighbors` are searched exactly."""
    faiss = import_faiss()
    if parameters is not None:
        try:
            faiss.ParameterSpace().set_index_parameters(index, parameters)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"faiss_parameters={parameters!r} does not fit this index: {reason}") from error
    similarities, indices = index.search(np.ascontiguousarray(queries, dtype=np.float32), n_neighbors)
    short = np.flatnonzero((indices < 0).any(axis=1))
    if short.size:
        similarities[short], indices[short] = most_similar(queries[short].astype(np.float32), bank, n_neighbors)
    return similarities.astype(queries.dtype, copy=False), indices.astype(np.intp, copy=False)
