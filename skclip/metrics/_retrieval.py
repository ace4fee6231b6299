"""How early a search finds what belongs to the query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from skclip.metrics._checks import as_weights, check_choice, check_count, check_scores
from skclip.utils._arrays import row_batches


class _Relevant(NamedTuple):
    """The (query, item) pairs that belong together, sorted by query; every query has one."""

    queries: NDArray  # (p,)
    items: NDArray  # (p,)
    starts: NDArray  # (n_q,) first pair of each query
    counts: NDArray  # (n_q,)


def retrieval_recall(
    similarity: ArrayLike,
    relevant: Any,
    *,
    k: int | Sequence[int] = 1,
    ties: Literal["expected", "worst"] = "expected",
    sample_weight: ArrayLike | None = None,
) -> Any:
    """Share of queries that find any item of theirs among the k most similar (R@k).

    Parameters
    ----------
    similarity : array-like of shape (n_queries, n_items)
        Larger = more similar. Only the order within a row counts.
    relevant : array-like or list of arrays
        What belongs to each query: a matrix of bool of shape (n_queries, n_items), positions of one item each of
        shape (n_queries,), or for each query an array of positions.
    k : int or sequence of int, default=1
        How many items are looked at; all of them where there are fewer.
    ties : {"expected", "worst"}, default="expected"
        Items of equal similarity are in no order: "expected" is the mean over all orders, so that a constant
        similarity gets what guessing gets; "worst" puts those that do not belong first.
    sample_weight : array-like of shape (n_queries,), default=None
        Weights of the queries.

    Returns
    -------
    float, or ndarray of shape (len(k),) for a sequence

    Raises
    ------
    ValueError
        If a query has nothing relevant, a position is no item, or a similarity is not finite.

    See Also
    --------
    retrieval_average_precision : Looks at all relevant items.

    Notes
    -----
    Of a model of pairs, pass ``similarity`` for pictures to texts and ``similarity.T`` for texts to pictures, each
    with its own `relevant`. O(n_queries n_items) time.

    References
    ----------
    A. Karpathy and L. Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions", CVPR 2015,
    arXiv:1412.2306.

    Examples
    --------
    >>> from skclip.metrics import retrieval_recall
    >>> similarity = [[0.9, 0.2, 0.1], [0.8, 0.7, 0.1]]
    >>> retrieval_recall(similarity, [0, 1], k=(1, 2))
    array([0.5, 1. ])
    >>> retrieval_recall(similarity, [[0, 2], [0, 1]])
    1.0
    """
    scores = _check_similarity(similarity)
    pairs = _check_relevant(relevant, scores.shape)
    check_choice("ties", ties, ("expected", "worst"))
    depths = [check_count("k", depth) for depth in np.atleast_1d(np.asarray(k)).tolist()]
    weights = as_weights(sample_weight, len(scores))
    own = scores[pairs.queries, pairs.items]
    best = np.maximum.reduceat(own, pairs.starts)
    tied_own = np.add.reduceat((own == best[pairs.queries]).astype(np.intp), pairs.starts)
    ahead, tied = np.empty(len(scores), dtype=np.intp), np.empty(len(scores), dtype=np.intp)
    for rows in row_batches(len(scores), 2 * scores.shape[1]):
        ahead[rows] = np.count_nonzero(scores[rows] > best[rows, None], axis=1)
        tied[rows] = np.count_nonzero(scores[rows] == best[rows, None], axis=1)
    tied_other = tied - tied_own
    if ties == "worst":
        found = np.array([ahead + tied_other < depth for depth in depths], dtype=np.float64)
    else:
        found = np.array([1.0 - _all_missed(depth - ahead, tied_own, tied_other) for depth in depths])
    recalls = found @ weights / weights.sum()
    return float(recalls[0]) if np.ndim(k) == 0 else recalls


def retrieval_average_precision(
    similarity: ArrayLike,
    relevant: Any,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Mean over queries of the average precision of their ranking (mAP).

    The average precision of a query is the mean over its relevant items of the share of relevant items among those
    at least as similar. Items of equal similarity are one step, as in
    :func:`sklearn.metrics.average_precision_score`, which it equals query by query.

    Parameters
    ----------
    similarity : array-like of shape (n_queries, n_items)
        Larger = more similar. Only the order within a row counts.
    relevant : array-like or list of arrays
        What belongs to each query: a matrix of bool of shape (n_queries, n_items), positions of one item each of
        shape (n_queries,), or for each query an array of positions.
    sample_weight : array-like of shape (n_queries,), default=None
        Weights of the queries.

    Returns
    -------
    float
        1 where every relevant item comes before all others.

    Raises
    ------
    ValueError
        If a query has nothing relevant, a position is no item, or a similarity is not finite.

    Notes
    -----
    O(n_queries n_items log n_items) time, one query at a time.

    References
    ----------
    C. Manning, P. Raghavan and H. Schuetze, "Introduction to Information Retrieval", Cambridge University Press,
    2008, section 8.4.

    Examples
    --------
    >>> from skclip.metrics import retrieval_average_precision
    >>> retrieval_average_precision([[0.9, 0.8, 0.1]], [[0, 2]])
    0.8333333333333333
    """
    scores = _check_similarity(similarity)
    pairs = _check_relevant(relevant, scores.shape)
    weights = as_weights(sample_weight, len(scores))
    n_items = scores.shape[1]
    precision = np.empty(len(scores))
    for query, (start, count) in enumerate(zip(pairs.starts, pairs.counts, strict=True)):
        own = np.sort(scores[query, pairs.items[start : start + count]])
        at_least = n_items - np.searchsorted(np.sort(scores[query]), own, side="left")
        own_at_least = count - np.searchsorted(own, own, side="left")
        precision[query] = np.mean(own_at_least / at_least)
    return float(np.average(precision, weights=weights))


def _all_missed(n_drawn: NDArray, n_own: NDArray, n_other: NDArray) -> NDArray:
    """Probability that `n_drawn` of ``n_own + n_other`` items in random order hold none of the `n_own`."""
    drawn = np.clip(n_drawn, 0, n_own + n_other)
    possible = (drawn > 0) & (drawn <= n_other)
    drawn = np.where(possible, drawn, 0)
    logs = gammaln(n_other + 1) - gammaln(n_other - drawn + 1)
    logs -= gammaln(n_own + n_other + 1) - gammaln(n_own + n_other - drawn + 1)
    return np.where(possible, np.exp(logs), np.where(n_drawn <= 0, 1.0, 0.0))


def _check_similarity(similarity: ArrayLike) -> NDArray:
    return check_scores("similarity", similarity, ndim=2, keep_float32=True)


def _check_relevant(relevant: Any, shape: tuple[int, int]) -> _Relevant:
    """The pairs that belong together, whichever way they are told."""
    n_queries, n_items = shape
    if len(relevant) != n_queries:
        raise ValueError(f"relevant tells of {len(relevant)} queries, but similarity has {n_queries} rows.")
    matrix = relevant if isinstance(relevant, np.ndarray) else None
    if matrix is None and n_queries and np.ndim(relevant[0]) == 1 and np.asarray(relevant[0]).dtype == bool:
        matrix = np.asarray(relevant)
    if matrix is not None and matrix.dtype == bool:
        if matrix.shape != shape:
            raise ValueError(f"relevant has shape {matrix.shape}, but similarity {shape}; a matrix of bool has both.")
        queries, items = np.nonzero(matrix)
        counts = np.bincount(queries, minlength=n_queries)
    else:
        lists = [np.unique(np.atleast_1d(np.asarray(entry))) for entry in relevant]
        counts = np.array([len(entry) for entry in lists])
        queries = np.repeat(np.arange(n_queries), counts)
        items = _check_positions([entry for entry in lists if len(entry)], queries, n_items)
    empty = np.flatnonzero(counts == 0)
    if empty.size:
        raise ValueError(f"Nothing is relevant to query {empty[0]}; leave out the queries that nothing belongs to.")
    return _Relevant(queries, items, np.cumsum(counts) - counts, counts)


def _check_positions(lists: list[NDArray], queries: NDArray, n_items: int) -> NDArray:
    """All positions in a row."""
    items = np.concatenate(lists) if lists else np.empty(0, dtype=np.intp)
    if items.dtype.kind not in "iu":
        raise ValueError(
            f"relevant holds {items[0].item()!r}; it tells positions of items, whole numbers, or is a matrix of bool."
        )
    wrong = np.flatnonzero((items < 0) | (items >= n_items))
    if wrong.size:
        raise ValueError(
            f"relevant names item {items[wrong[0]]} for query {queries[wrong[0]]}, but similarity has {n_items} "
            "columns, 0 and up."
        )
    return items.astype(np.intp)
