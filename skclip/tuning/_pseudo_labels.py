"""Which unlabelled pictures a classifier is sure enough of to learn from: pure functions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

# choices after the best that a class without any picture may fall back on
_RANKS = 3


class PseudoLabels(NamedTuple):
    """Chosen pictures.

    Attributes
    ----------
    rows : ndarray of shape (m,), intp
        Their positions, ascending.
    codes : ndarray of shape (m,), intp
        Their classes, 0..K-1.
    confidences : ndarray of shape (m,)
        Probability of that class.
    """

    rows: NDArray
    codes: NDArray
    confidences: NDArray


def n_per_class(n_pictures: int, n_classes: int, top_fraction: float, min_per_class: int) -> int:
    """Pictures to choose for each class: a share of an even split, but no fewer than `min_per_class`."""
    return max(min_per_class, int(top_fraction * n_pictures / n_classes))


def most_confident(logits: NDArray, n_best: int) -> PseudoLabels:
    """For each class the pictures that the classifier assigns to it with the most confidence.

    A picture counts for the class of its largest logit. A class that is the best of no picture takes from those that
    are left over where it is the second best, failing these where it is the third; if that gives none, it stays
    without. No picture is chosen twice.

    Parameters
    ----------
    logits : ndarray of shape (n, K)
        K is at least 2.
    n_best : int
        Pictures per class at most.

    Returns
    -------
    PseudoLabels

    Notes
    -----
    Pictures are ordered by the log-odds of the class, ``l_k - log sum_{j != k} exp(l_j)``: the order of the
    probabilities, of which many are 1.0 after rounding.
    """
    logits = logits.astype(np.float64, copy=False)
    n, n_classes = logits.shape
    codes, odds = np.full(n, -1), np.empty(n)
    missing, untried = np.arange(n_classes), logits
    for _ in range(min(_RANKS, n_classes)):
        candidates = untried.argmax(axis=1)
        rows = np.flatnonzero((codes < 0) & np.isin(candidates, missing))
        scores = log_odds(logits[rows], candidates[rows])
        best = _first_of_each(candidates[rows], scores, n_best)
        codes[rows[best]], odds[rows[best]] = candidates[rows[best]], scores[best]
        missing = np.setdiff1d(missing, candidates[rows])
        if not missing.size:
            break
        untried = untried.copy()
        untried[np.arange(n), candidates] = -np.inf
    rows = np.flatnonzero(codes >= 0)
    return PseudoLabels(rows, codes[rows], expit(odds[rows]))


def log_odds(logits: NDArray, codes: NDArray) -> NDArray:
    """Log-odds of the class `codes` (n,) of each row of logits (n, K)."""
    rows = np.arange(len(logits))
    others = logits.copy()
    others[rows, codes] = -np.inf
    return logits[rows, codes] - logsumexp(others, axis=1)


def _first_of_each(codes: NDArray, scores: NDArray, n_best: int) -> NDArray:
    """Positions of the `n_best` largest scores of each class."""
    order = np.lexsort((-scores, codes))
    starts = np.searchsorted(codes[order], codes[order])
    return order[np.arange(len(order)) - starts < n_best]
