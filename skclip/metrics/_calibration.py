"""Whether a classifier is as sure as it is right."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch

from skclip.metrics._checks import (
    check_choice,
    check_confidences,
    check_count,
    check_probabilities,
    check_share,
)
from skclip.utils._base import SkclipWarning
from skclip.utils._docs import fill_doc

Strategy = Literal["uniform", "quantile"]


@fill_doc
def expected_calibration_error(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    n_bins: int = 15,
    strategy: Strategy = "uniform",
    norm: Literal["l1", "max"] = "l1",
    sample_weight: ArrayLike | None = None,
) -> float:
    """Mean distance between confidence and accuracy, in bins of confidence.

    ``ECE = sum_b n_b / n * |acc_b - conf_b|`` [1]_: confidence is the largest probability of a row, accuracy the
    share of rows whose largest probability is that of their label. The figure depends on the bins: state `n_bins`,
    and look at both strategies.

    Parameters
    ----------
    %(y_true_or_correct)s
    %(y_prob_or_confidence)s
    %(labels)s
    n_bins : int, default=15
        Bins are ``(low, high]``; confidence 0 belongs to the first.
    strategy : {"uniform", "quantile"}, default="uniform"
        Bins of equal width, or of equal weight. Equal confidences share a bin, so that "quantile" may find fewer
        bins.
    norm : {"l1", "max"}, default="l1"
        "max" is the largest distance of a bin that holds any row, the maximum calibration error.
    %(sample_weight)s

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If `y_prob` holds no probabilities, or a label has no column.

    See Also
    --------
    adaptive_calibration_error : Every class, not the predicted one alone.
    reliability_curve : The bins.

    References
    ----------
    .. [1] C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599, equation (3);
       "max" is equation (5).

    Examples
    --------
    >>> from skclip.metrics import expected_calibration_error
    >>> expected_calibration_error([0, 1, 1, 0], [[1.0, 0.0], [1.0, 0.0], [0.25, 0.75], [1.0, 0.0]])
    0.3125
    """
    bins = reliability_curve(
        y_true, y_prob, labels=labels, n_bins=n_bins, strategy=strategy, sample_weight=sample_weight
    )
    check_choice("norm", norm, ("l1", "max"))
    filled = bins.count > 0
    gaps = np.abs(bins.accuracy - bins.confidence)[filled]
    return float(gaps.max() if norm == "max" else gaps @ bins.count[filled] / bins.count.sum())


@fill_doc
def adaptive_calibration_error(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    n_bins: int = 15,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Calibration error of all probabilities of all classes, in bins of equal weight.

    ``ACE = 1 / K * sum_k sum_r n_rk / n * |acc_rk - conf_rk|``, where the bins r of class k hold equal shares of the
    rows by the probability of k, and ``acc`` is how often k is the label [1]_. With confidences (n,) it is
    `expected_calibration_error` with ``strategy="quantile"``.

    Parameters
    ----------
    %(y_true_or_correct)s
    %(y_prob_or_confidence)s
    %(labels)s
    n_bins : int, default=15
        Bins of each class; fewer where probabilities are equal, as these share a bin.
    %(sample_weight)s

    Returns
    -------
    float
        Between 0 and 1.

    Notes
    -----
    O(K n log n) time. With many classes most probabilities are nearly 0 and so is the mean over the classes:
    compare models on one set of classes only.

    References
    ----------
    .. [1] J. Nixon et al., "Measuring Calibration in Deep Learning", CVPR Workshops 2019, arXiv:1904.01685.

    Examples
    --------
    >>> from skclip.metrics import adaptive_calibration_error
    >>> adaptive_calibration_error(["cat", "dog"], [[0.75, 0.25], [0.25, 0.75]])
    0.25
    """
    n_bins = check_count("n_bins", n_bins)
    if np.ndim(y_prob) == 1:
        return expected_calibration_error(
            y_true, y_prob, labels=labels, n_bins=n_bins, strategy="quantile", sample_weight=sample_weight
        )
    codes, prob, weights = check_probabilities(y_true, y_prob, labels, sample_weight)
    gaps = [_quantile_gap(prob[:, k], codes == k, weights, n_bins) for k in range(prob.shape[1])]
    return float(np.mean(gaps))


@fill_doc
def reliability_curve(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    n_bins: int = 15,
    strategy: Strategy = "uniform",
    sample_weight: ArrayLike | None = None,
) -> Bunch:
    """Confidence and accuracy of the predicted class, in bins of confidence: what a reliability diagram draws.

    Parameters
    ----------
    %(y_true_or_correct)s
    %(y_prob_or_confidence)s
    %(labels)s
    n_bins : int, default=15
        Bins are ``(low, high]``; confidence 0 belongs to the first.
    strategy : {"uniform", "quantile"}, default="uniform"
        Bins of equal width, or of equal weight (fewer than `n_bins` where confidences are equal).
    %(sample_weight)s

    Returns
    -------
    curve : :class:`~sklearn.utils.Bunch`
        confidence, accuracy : ndarray of shape (B,)
            Means of the bins, B of them; NaN where a bin is empty.
        count : ndarray of shape (B,)
            Weight of the rows of each bin.
        edges : ndarray of shape (B + 1,)
            From 0 to 1.

    See Also
    --------
    sklearn.calibration.calibration_curve : The curve of one class.

    References
    ----------
    C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599.

    Examples
    --------
    >>> from skclip.metrics import reliability_curve
    >>> curve = reliability_curve([True, False, True], [0.9, 0.8, 0.3], n_bins=2)
    >>> curve.count
    array([1., 2.])
    >>> curve.accuracy
    array([1. , 0.5])
    """
    confidence, correct, weights = check_confidences(y_true, y_prob, labels, sample_weight)
    n_bins = check_count("n_bins", n_bins)
    check_choice("strategy", strategy, ("uniform", "quantile"))
    if strategy == "uniform":
        edges = np.linspace(0.0, 1.0, n_bins + 1)
    else:
        edges = np.concatenate([[0.0], _quantile_edges(confidence, weights, n_bins), [1.0]])
    count, sure, right = _bin_sums(confidence, correct, weights, edges[1:-1])
    with np.errstate(invalid="ignore"):
        return Bunch(confidence=sure / count, accuracy=right / count, count=count, edges=edges)


@fill_doc
def negative_log_likelihood(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Mean of ``-log p_y``, the probability of the label.

    The same as :func:`sklearn.metrics.log_loss`, for labels of any kind and folds that lost a class. Probabilities
    are clipped to ``[eps, 1 - eps]`` of float64, so that a sure error costs 36 and not infinity.

    Parameters
    ----------
    %(y_true)s
    %(y_prob)s
    %(labels)s
    %(sample_weight)s

    Returns
    -------
    float
        Non-negative; smaller is better.

    References
    ----------
    T. Gneiting and A. Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", Journal of the American
    Statistical Association 102(477), 2007.

    Examples
    --------
    >>> from skclip.metrics import negative_log_likelihood
    >>> round(negative_log_likelihood(["cat", "dog"], [[0.5, 0.5], [0.5, 0.5]]), 4)
    0.6931
    """
    codes, prob, weights = check_probabilities(y_true, y_prob, labels, sample_weight)
    eps = np.finfo(np.float64).eps
    own = np.clip(prob[np.arange(len(prob)), codes], eps, 1.0 - eps)
    return float(-np.average(np.log(own), weights=weights))


@fill_doc
def brier_score_multiclass(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Mean of ``sum_k (p_k - 1[y = k])^2``, the score as first defined [1]_.

    With two classes it is twice :func:`sklearn.metrics.brier_score_loss`.

    Parameters
    ----------
    %(y_true)s
    %(y_prob)s
    %(labels)s
    %(sample_weight)s

    Returns
    -------
    float
        Between 0 and 2; smaller is better.

    References
    ----------
    .. [1] G. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78(1), 1950.

    Examples
    --------
    >>> from skclip.metrics import brier_score_multiclass
    >>> brier_score_multiclass([0, 1], [[0.5, 0.5], [0.0, 1.0]])
    0.25
    """
    codes, prob, weights = check_probabilities(y_true, y_prob, labels, sample_weight)
    own = prob[np.arange(len(prob)), codes]
    squares = np.einsum("nk,nk->n", prob, prob) - 2.0 * own + 1.0
    return float(np.average(np.maximum(squares, 0.0), weights=weights))


@fill_doc
def overconfidence_rate(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    threshold: float = 0.8,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Share of all rows that are wrong with a confidence of at least `threshold` (OCR).

    ``OCR = #{i : wrong and c_i >= threshold} / n`` [1]_. The denominator counts all rows, so that the rate is at most
    the error rate, which it is at threshold 0.

    Parameters
    ----------
    %(y_true_or_correct)s
    %(y_prob_or_confidence)s
    threshold : float, default=0.8
        Confidence from which an error counts.
    %(labels)s
    %(sample_weight)s

    Returns
    -------
    float
        Between 0 and 1; smaller is better.

    References
    ----------
    .. [1] "Orchestrator-Agent Trust: A Modular Agentic AI Visual Classification System with Trust-Aware
       Orchestration and RAG-Based Reasoning", 2025, arXiv:2507.10571.

    Examples
    --------
    >>> from skclip.metrics import overconfidence_rate
    >>> overconfidence_rate([True, False, False, True], [0.9, 0.9, 0.4, 0.3])
    0.25
    """
    confidence, correct, weights = check_confidences(y_true, y_prob, labels, sample_weight)
    threshold = check_share("threshold", threshold)
    return float(np.average(~correct & (confidence >= threshold), weights=weights))


@fill_doc
def confidence_correctness_correlation(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Pearson correlation between confidence and being right (CCC) [1]_.

    Parameters
    ----------
    %(y_true_or_correct)s
    y_prob : array-like of shape (n, K) or (n,)
        Probabilities of the classes, or confidences on any scale: an increasing affine map changes nothing.
    %(labels)s
    %(sample_weight)s

    Returns
    -------
    float
        Between -1 and 1; 0 where every row is equally confident, or all are right, or all wrong.

    Warns
    -----
    SkclipWarning
        If there is no correlation to measure.

    References
    ----------
    .. [1] "Orchestrator-Agent Trust: A Modular Agentic AI Visual Classification System with Trust-Aware
       Orchestration and RAG-Based Reasoning", 2025, arXiv:2507.10571.

    Examples
    --------
    >>> from skclip.metrics import confidence_correctness_correlation
    >>> confidence_correctness_correlation([True, False, True, False], [0.9, 0.6, 0.9, 0.6])
    1.0
    """
    confidence, correct, weights = check_confidences(y_true, y_prob, labels, sample_weight, any_score=True)
    kept = weights > 0
    confidence, right, weights = confidence[kept], correct[kept].astype(np.float64), weights[kept]
    for name, values in (("confidence", confidence), ("correctness", right)):
        if np.ptp(values) == 0.0:
            warnings.warn(
                f"The {name} is {values[0]:g} for every row, so it correlates with nothing; the correlation of "
                "confidence and correctness is taken to be 0.",
                SkclipWarning,
                stacklevel=2,
            )
            return 0.0
    # to unit range first: squares of very small or large scores leave the floats
    confidence = (confidence - confidence.min()) / np.ptp(confidence)
    confidence = confidence - np.average(confidence, weights=weights)
    right = right - np.average(right, weights=weights)
    spread = np.sqrt((weights @ confidence**2) * (weights @ right**2))
    return float(np.clip(weights @ (confidence * right) / spread, -1.0, 1.0))


@fill_doc
def risk_coverage_curve(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> Bunch:
    """Error rate among the most confident rows, for every share of rows that are answered.

    What selective prediction costs: answer only where the confidence is at least a threshold, leave the rest to a
    person. Rows of equal confidence are answered together or not at all.

    Parameters
    ----------
    %(y_true_or_correct)s
    %(y_prob_or_order)s
    %(labels)s
    %(sample_weight)s

    Returns
    -------
    curve : :class:`~sklearn.utils.Bunch`
        threshold : ndarray of shape (m,)
            The different confidences, descending.
        coverage : ndarray of shape (m,)
            Share of rows at or above the threshold; the last is 1.
        risk : ndarray of shape (m,)
            Error rate among them; the last is that of all rows.
        area : float
            AURC [1]_, the mean risk over all coverages.
        excess_area : float
            AURC less ``e + (1 - e) log(1 - e)``, what the best possible order of as many errors tends to
            (E-AURC) [1]_.

    References
    ----------
    .. [1] Y. Geifman, G. Uziel and R. El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers",
       ICLR 2019, arXiv:1805.08206.

    Examples
    --------
    >>> from skclip.metrics import risk_coverage_curve
    >>> curve = risk_coverage_curve([True, True, False, True], [0.9, 0.8, 0.3, 0.3])
    >>> curve.coverage
    array([0.25, 0.5 , 1.  ])
    >>> curve.risk
    array([0.  , 0.  , 0.25])
    >>> curve.area
    0.125
    """
    confidence, correct, weights = check_confidences(y_true, y_prob, labels, sample_weight, any_score=True)
    kept = weights > 0
    threshold, groups = np.unique(-confidence[kept], return_inverse=True)
    mass = np.bincount(groups, weights[kept])
    wrong = np.bincount(groups, weights[kept] * ~correct[kept])
    answered = np.cumsum(mass)
    risk = np.cumsum(wrong) / answered
    area, errors = float(mass @ risk / answered[-1]), risk[-1]
    best = errors + (1.0 - errors) * np.log1p(-errors) if errors < 1.0 else 1.0
    return Bunch(
        threshold=-threshold,
        coverage=answered / answered[-1],
        risk=risk,
        area=area,
        excess_area=area - float(best),
    )


@fill_doc
def area_under_risk_coverage(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Mean error rate over all shares of rows answered, the most confident first (AURC).

    Parameters
    ----------
    %(y_true_or_correct)s
    %(y_prob_or_order)s
    %(labels)s
    %(sample_weight)s

    Returns
    -------
    float
        Between 0 and 1, smaller is better; the error rate where every row is equally confident.

    See Also
    --------
    risk_coverage_curve : The curve, and the area in excess of the best order.

    References
    ----------
    Y. Geifman, G. Uziel and R. El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", ICLR
    2019, arXiv:1805.08206.

    Examples
    --------
    >>> from skclip.metrics import area_under_risk_coverage
    >>> area_under_risk_coverage([True, True, False, False], [0.9, 0.9, 0.9, 0.9])
    0.5
    """
    return risk_coverage_curve(y_true, y_prob, labels=labels, sample_weight=sample_weight).area


def _quantile_edges(confidence: NDArray, weights: NDArray, n_bins: int) -> NDArray:
    """Inner edges of bins of equal weight: smallest confidences with a share of at least i / n_bins up to them."""
    order = np.argsort(confidence, kind="stable")
    cumulative = np.cumsum(weights[order])
    # whole-number weights stay exact: no quotient is compared
    places = np.searchsorted(cumulative * n_bins, cumulative[-1] * np.arange(1, n_bins))
    edges = np.unique(confidence[order][np.minimum(places, len(order) - 1)])
    # an edge at the largest confidence would leave the last bin empty
    return edges[edges < confidence[weights > 0].max()]


def _bin_sums(values: NDArray, hits: NDArray, weights: NDArray, inner_edges: NDArray) -> tuple[NDArray, ...]:
    """Weight, weighted sum of values and of hits of each bin ``(low, high]``."""
    bins = np.searchsorted(inner_edges, values, side="left")
    n_bins = len(inner_edges) + 1
    return tuple(np.bincount(bins, of, minlength=n_bins) for of in (weights, weights * values, weights * hits))


def _quantile_gap(values: NDArray, hits: NDArray, weights: NDArray, n_bins: int) -> float:
    """Weighted mean over bins of equal weight of ``|mean hit - mean value|``."""
    _, sure, right = _bin_sums(values, hits, weights, _quantile_edges(values, weights, n_bins))
    return float(np.abs(right - sure).sum() / weights.sum())
