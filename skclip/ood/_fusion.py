"""One score of several: a common scale, evidence against it, and weights from pictures held out, as pure functions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_ndtr, logsumexp, ndtri
from scipy.stats import rankdata

# beyond these shares of the calibration scores a quantile rests on few of them, and a straight line takes over
_TAIL = 0.05

# keeps the weights of equal members finite and alike; ten times more or less changes nothing that can be seen
_RIDGE = 1e-3

# of the two kinds of unknown pictures that `evidence` knows, neither is the likelier
_LOG_HALF = np.log(0.5)


def normal_score_knots(scores: NDArray) -> NDArray:
    """The increasing map of one member's scores to normal scores, as knots (2, k) of a broken line.

    Between the 5% and 95% quantiles of the calibration `scores` (n,) a score gets the normal quantile of its rank.
    Beyond them the map is the straight line through the median and that quantile, which the first and the last two
    knots hold, so that what is further out than any calibration picture still has an order.
    """
    median = float(np.median(scores))
    tail = ndtri(_TAIL)
    low, high = np.quantile(scores, [_TAIL, 1.0 - _TAIL])
    fallback = float(scores.std())
    below = (median - low) / -tail or fallback
    above = (high - median) / -tail or fallback
    if below == 0.0:
        return np.array([[median - 1.0, median + 1.0], [0.0, 0.0]])  # one value: it says nothing
    values, first = np.unique(scores, return_index=True)
    ranks = (rankdata(scores)[first] - 0.5) / len(scores)
    inner = (values > low) & (values < high)
    heights = np.concatenate([[tail - 1.0, tail], ndtri(ranks[inner]).clip(tail, -tail), [-tail, 1.0 - tail]])
    places = np.concatenate([[low - below, low], values[inner], [high, high + above]])
    return np.stack([places, heights])


def normal_scores(knots: NDArray, scores: NDArray) -> NDArray:
    """`normal_score_knots` applied to scores (n,), (n,): standard normal for pictures like those of calibration."""
    places, heights = knots
    inside = np.interp(scores, places, heights)
    first = (heights[1] - heights[0]) / (places[1] - places[0])
    last = (heights[-1] - heights[-2]) / (places[-1] - places[-2])
    return inside + np.minimum(scores - places[0], 0.0) * first + np.maximum(scores - places[-1], 0.0) * last


def log_e_values(normal: NDArray) -> NDArray:
    """Logarithm of the e-values ``int_0^1 c p^(c - 1) dc = (1/p - 1 + log p) / log^2 p`` of p-values ``Phi(normal)``.

    The p-to-e calibrator without a parameter (V. Vovk and R. Wang, "E-values: Calibration, combination and
    applications", Annals of Statistics 49(3), 2021, section 2): the likelihood ratio of a mixture of all alternatives
    ``c p^(c - 1)``. 1/2 at p = 1, 1 near p = 0.3, and growing as ``1 / (p log^2 p)``.
    """
    surprise = -log_ndtr(normal)  # -log p
    small = surprise < 0.05
    safe = np.where(small, 1.0, surprise)
    exact = safe + np.log1p(-(1.0 + safe) * np.exp(-safe)) - 2.0 * np.log(safe)
    # where the terms above cancel: sum_j (-log p)^j / (j + 2)!
    series = np.polynomial.polynomial.polyval(np.minimum(surprise, 0.05), [1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720])
    return np.where(small, np.log(series), exact)


def held_out_weights(known: NDArray, unknown: NDArray) -> tuple[NDArray, float]:
    """Weights (M,), none negative, and intercept of the log-odds that a row of normal scores is of a known picture.

    Logistic regression of which is which, both kinds counting the same in all. No weight is negative: a picture that
    every member finds less familiar must not become more so.

    Parameters
    ----------
    known, unknown : ndarray of shape (n, M), (m, M)
    """
    rows = np.concatenate([known, unknown])
    sign = np.repeat([1.0, -1.0], [len(known), len(unknown)])
    share = np.repeat([0.5 / len(known), 0.5 / len(unknown)], [len(known), len(unknown)])

    def loss(params: NDArray) -> tuple[float, NDArray]:
        weights = params[:-1]
        margins = sign * (rows @ weights + params[-1])
        pull = -share * sign * expit(-margins)
        value = share @ np.logaddexp(0.0, -margins) + 0.5 * _RIDGE * weights @ weights
        return float(value), np.append(rows.T @ pull + _RIDGE * weights, pull.sum())

    n_members = rows.shape[1]
    bounds = [(0.0, None)] * n_members + [(None, None)]
    found = minimize(loss, np.zeros(n_members + 1), jac=True, method="L-BFGS-B", bounds=bounds)
    return found.x[:-1], float(found.x[-1])


def evidence(normal: NDArray, shares: NDArray, weights: NDArray | None, intercept: float) -> NDArray:
    """Minus the logarithm of how much likelier a picture is an unknown one, (n,).

    Half of the unknown pictures are taken to be like classes held out, with the likelihood ratio
    ``exp(-(normal @ weights + intercept))``, and half to be like nothing in particular, with the mean of the members'
    e-values under `shares`; all of them where `weights` is None.
    """
    with np.errstate(divide="ignore"):
        surprise = logsumexp(log_e_values(normal) + np.log(shares), axis=1)
    if weights is None:
        return -surprise
    return -np.logaddexp(_LOG_HALF - (normal @ weights + intercept), _LOG_HALF + surprise)


def weighted_mean(normal: NDArray, shares: NDArray) -> NDArray:
    """Stouffer's method: the mean of normal scores, (n,)."""
    return normal @ shares


def mean_log_p(normal: NDArray, shares: NDArray) -> NDArray:
    """Fisher's method: the mean of the logarithms of p-values, (n,)."""
    return log_ndtr(normal) @ shares


def smallest(normal: NDArray, shares: NDArray) -> NDArray:
    """The lowest normal score of the members that count at all, (n,)."""
    return normal[:, shares > 0.0].min(axis=1)
