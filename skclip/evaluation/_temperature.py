"""One temperature for all logits of a classifier."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import gen_batches
from sklearn.utils.validation import check_consistent_length

from skclip.metrics._checks import as_weights, check_scores, label_columns
from skclip.utils._base import SkclipWarning

# logarithms of the inverse temperatures that are tried; those of scikit-learn
_LOG_BOUNDS = (-10.0, 10.0)

_MAX_STEPS, _TOLERANCE = 100, 1e-12
_BLOCK = 2**17  # logits


def fit_temperature(
    logits: ArrayLike,
    y: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """The temperature T at which ``softmax(logits / T)`` fits held-out labels best.

    Minimises the negative log-likelihood of rows that the classifier was not fitted to [1]_. It makes a classifier less
    or more sure and changes no prediction; fitted on in-distribution pictures, it carries over to shifted ones [2]_.

    Parameters
    ----------
    logits : array-like of shape (n, K)
        As from `skclip.utils.get_logits`.
    y : array-like of shape (n,)
        Labels of the rows.
    labels : array-like of shape (K,), default=None
        Labels of the columns (``classes_``). None: 0..K-1 where y holds nothing else, or the K different labels of y,
        sorted.
    sample_weight : array-like of shape (n,), default=None
        Weights of the rows.

    Returns
    -------
    float
        T, between 4.5e-5 and 2.2e4; below 1 where the logits are too small for how often they are right.

    Raises
    ------
    ValueError
        If the logits are not finite, a label has no column, or lengths differ.

    Warns
    -----
    SkclipWarning
        If no finite temperature is best: every row is right, or the logits tell less than nothing.

    See Also
    --------
    sklearn.calibration.CalibratedClassifierCV : The same with ``method="temperature"``, around a classifier.

    Notes
    -----
    The likelihood is convex in 1 / T: Newton's method, kept between bounds by bisection, takes about ten passes over
    the logits, in float64 and in blocks of rows.

    References
    ----------
    .. [1] C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599.
    .. [2] W. Tu, W. Deng and T. Gedeon, "Toward a Holistic Evaluation of Robustness in CLIP Models", IEEE TPAMI, 2025,
       arXiv:2410.01534.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.evaluation import fit_temperature
    >>> logits, y = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]), [0, 0, 1, 1]
    >>> round(fit_temperature(logits, y), 3)
    1.82
    """
    scores = check_scores("logits", logits, ndim=2)
    check_consistent_length(scores, y)
    codes = label_columns(y, scores.shape[1], labels, name="y", matrix="logits")
    weights = as_weights(sample_weight, len(scores))
    scores = scores - scores.max(axis=1, keepdims=True)
    if not scores.any():
        return _at_the_bound(1.0, "all logits of a row are equal, in every row")

    low, high = _LOG_BOUNDS
    if _derivatives(scores, codes, weights, high)[0] <= 0.0:
        return _at_the_bound(float(np.exp(-high)), "the largest logit is that of the label in every row that counts")
    if _derivatives(scores, codes, weights, low)[0] >= 0.0:
        return _at_the_bound(float(np.exp(-low)), "the logits predict the labels no better than chance")
    log_beta = float(np.clip(-np.log(scores.std()), low + 1.0, high - 1.0))
    for _ in range(_MAX_STEPS):
        slope, curvature = _derivatives(scores, codes, weights, log_beta)
        low, high = (low, log_beta) if slope > 0.0 else (log_beta, high)
        newton = log_beta - slope / curvature if curvature > 0.0 else np.inf
        previous, log_beta = log_beta, newton if low <= newton <= high else 0.5 * (low + high)
        if abs(log_beta - previous) < _TOLERANCE:
            break
    return float(np.exp(-log_beta))


def _derivatives(scores: NDArray, codes: NDArray, weights: NDArray, log_beta: float) -> tuple[float, float]:
    """First and second derivative of the weighted negative log-likelihood of ``softmax(exp(log_beta) * scores)`` with
    respect to `log_beta`; the largest score of a row is 0."""
    beta, slope, curvature = np.exp(log_beta), 0.0, 0.0
    # blocks that stay in cache
    for part in gen_batches(len(scores), max(1, _BLOCK // scores.shape[1])):
        block = beta * scores[part]
        prob = np.exp(block)
        total = prob.sum(axis=1)
        mean = np.einsum("nk,nk->n", prob, block) / total
        square = np.einsum("nk,nk,nk->n", prob, block, block) / total
        own = block[np.arange(len(block)), codes[part]]
        slope += float(weights[part] @ (mean - own))
        curvature += float(weights[part] @ (square - mean**2 + mean - own))
    return slope, curvature


def _at_the_bound(temperature: float, reason: str) -> float:
    warnings.warn(
        f"No temperature is best, as {reason}; it is set to {temperature:.3g}. Calibrate with more rows, and with rows "
        "that the classifier was not fitted to.",
        SkclipWarning,
        stacklevel=3,
    )
    return temperature
