"""The bank of training rows that a detector by neighbours searches: with NumPy, torch or faiss."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.utils import gen_batches
from sklearn.utils.validation import check_consistent_length

from skclip.ood._detector import KnownRows, in_sample_positions
from skclip.ood._device import DEVICE_CONSTRAINTS, resolve, resolve_fitted
from skclip.utils._arrays import check_features, row_batches
from skclip.utils._faiss import index_of, replace_index, search_index
from skclip.utils._names import check_labels
from skclip.utils._neighbors import largest_products, most_similar
from skclip.utils._params import Interval, StrOptions
from skclip.utils._training import check_directions, check_target

if TYPE_CHECKING:
    import torch

BANK_CONSTRAINTS: dict[str, list[Any]] = {
    "n_neighbors": [Interval(Integral, 1, None, closed="left")],
    **DEVICE_CONSTRAINTS,
    "backend": [StrOptions({"exact", "faiss"})],
    "faiss_factory": [str],
    "faiss_parameters": [str, None],
}


def check_rows(estimator: Any, X: Any, *, reset: bool) -> tuple[NDArray, int]:
    """`check_features` of the X of `fit`, which must not be all zeros."""
    X, n_views = check_features(estimator, X, reset=reset)
    check_directions(X, np.zeros(len(X) // n_views, dtype=np.intp), np.array(["in-distribution"]), n_views)
    return X, n_views


def check_more_known(estimator: Any, X: Any, y: ArrayLike | None) -> KnownRows:
    """`check_known` of a later chunk, whose labels join ``classes_``."""
    X, n_views = check_rows(estimator, X, reset=False)
    if y is not None:
        y = check_target(estimator, y)
        check_consistent_length(X[::n_views], y)
        known = [] if estimator.classes_ is None else estimator.classes_.tolist()
        # joined as they are, NumPy would make strings of numbers
        estimator.classes_ = np.unique(check_labels([*known, *np.unique(y).tolist()], name="classes_"))
    return KnownRows(X, np.zeros(len(X) // n_views, dtype=np.intp), n_views)


def threshold_scores(estimator: Any) -> NDArray:
    """Scores that set the threshold after the bank has grown."""
    if not isinstance(estimator.calibration, str):
        return estimator._finite_scores(estimator.calibration, "calibration")
    return estimator._bank_scores(held_out=estimator.calibration == "cv")


def add_rows(estimator: Any, rows: NDArray, n_views: int) -> None:
    """Set ``bank_``, ``pictures_`` and ``faiss_index_`` of `estimator`, or append to them.

    Parameters
    ----------
    estimator : detector
        With the parameters of `BANK_CONSTRAINTS`.
    rows : ndarray of shape (n * n_views, d)
        Row i * n_views + v is view v of picture i.

    Raises
    ------
    ValueError
        If there are fewer rows than `n_neighbors`, or the device is not there.
    """
    resolve(estimator.device)
    pictures = np.repeat(np.arange(len(rows) // n_views), n_views)
    if hasattr(estimator, "bank_"):
        rows = np.concatenate([estimator.bank_, rows])
        pictures = np.concatenate([estimator.pictures_, pictures + estimator.pictures_[-1] + 1])
    held_out = isinstance(estimator.calibration, str) and estimator.calibration == "cv"
    n_others = len(rows) - (np.bincount(pictures).max() if held_out else 0)
    if estimator.n_neighbors > n_others:
        whose = "of other pictures, of which each picture needs as many" if held_out else "to search"
        raise ValueError(
            f"n_neighbors={estimator.n_neighbors}, but there are {n_others} rows {whose} (n_samples = "
            f"{pictures[-1] + 1}). Pass more pictures or a smaller n_neighbors."
        )
    factory = estimator.faiss_factory if estimator.backend == "faiss" else None
    estimator.faiss_index_ = replace_index(estimator, rows, factory)
    estimator.bank_, estimator.pictures_ = rows, pictures


def threshold_rows(estimator: Any, *, held_out: bool) -> NDArray:
    """Places in the bank of view 0 of the pictures that set the threshold: all, where each is `held_out` in turn."""
    plain = np.flatnonzero(np.diff(estimator.pictures_, prepend=-1))
    positions = None if held_out else in_sample_positions(len(plain))
    return plain if positions is None else plain[positions]


def query_blocks(estimator: Any, n_queries: int) -> Iterator[slice]:
    """Blocks of queries whose rows and products with their neighbours stay within ``working_memory``."""
    n_found = int(estimator.n_neighbors) + int(np.bincount(estimator.pictures_).max())
    return row_batches(n_queries, 8 * (3 * estimator.bank_.shape[1] + 5 * n_found))


def largest_in_bank(estimator: Any, queries: NDArray, pictures: NDArray | None = None) -> NDArray:
    """The `n_neighbors` largest inner products of each query with the rows of the bank.

    Parameters
    ----------
    estimator : detector
        With the attributes that `add_rows` sets.
    queries : ndarray of shape (n, d)
    pictures : ndarray of shape (n,), default=None
        Pictures of the bank that the queries are views of, none of whose rows are to be found.

    Returns
    -------
    ndarray of shape (n, n_neighbors)
        In no order, in the floating type of `queries`.
    """
    k = int(estimator.n_neighbors)
    if k > len(estimator.bank_):
        raise ValueError(f"n_neighbors={k}, changed since fit, but the bank has {len(estimator.bank_)} rows.")
    if pictures is None:
        return _search(estimator, queries, k)[0]
    # among so many there are k of other pictures
    most_views = int(np.bincount(estimator.pictures_).max())
    products, indices = _search(estimator, queries, k + most_views, indices=True)
    products[estimator.pictures_[indices] == pictures[:, None]] = -np.inf
    products.partition(most_views, axis=1)
    return products[:, most_views:]


def _search(estimator: Any, queries: NDArray, k: int, indices: bool = False) -> tuple[NDArray, Any]:
    bank = estimator.bank_
    if estimator.backend == "faiss":
        index = index_of(estimator, bank, estimator.faiss_index_, estimator.faiss_factory)
        return search_index(index, queries, bank, k, estimator.faiss_parameters)
    device = resolve_fitted(estimator.device)
    if device is not None:
        return most_similar_on(device, queries, bank, k)
    return most_similar(queries, bank, k) if indices else (largest_products(queries, bank, k), None)


def most_similar_on(device: torch.device, queries: NDArray, bank: NDArray, n_neighbors: int) -> tuple[NDArray, NDArray]:
    """`skclip.utils._neighbors.most_similar` by torch; of equal similarities any comes first.

    Float64 stays float64, but on MPS, which has float32 only. Queries and bank are handed over once, in blocks.
    """
    import torch

    name = "float32" if device.type == "mps" else queries.dtype.name
    n, d = queries.shape
    similarities = np.empty((n, n_neighbors), dtype=queries.dtype)
    indices = np.empty((n, n_neighbors), dtype=np.intp)
    budget = int(get_config()["working_memory"] * 2**20) // queries.dtype.itemsize

    def there(rows: NDArray) -> torch.Tensor:
        return torch.tensor(rows, dtype=getattr(torch, name), device=device)

    # a third of the budget for the queries and their best, one for the products, one for rows of the bank
    for rows in gen_batches(n, max(1, budget // 3 // (d + 8 * n_neighbors))):
        asked = there(queries[rows])
        best = torch.full((len(asked), n_neighbors), -torch.inf, dtype=asked.dtype, device=device)
        places = torch.zeros(best.shape, dtype=torch.int64, device=device)
        for columns in gen_batches(len(bank), max(1, budget // 3 // max(len(asked), d))):
            found = asked @ there(bank[columns]).T
            new, new_places = found.topk(min(n_neighbors, found.shape[1]), dim=1)
            best, chosen = torch.cat([best, new], dim=1).topk(n_neighbors, dim=1)
            places = torch.cat([places, new_places + columns.start], dim=1).gather(1, chosen)
        similarities[rows], indices[rows] = best.cpu().numpy(), places.cpu().numpy()
    return similarities, indices
