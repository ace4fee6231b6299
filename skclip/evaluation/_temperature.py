"""One temperature for all logits of a classifier."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import softmax
from sklearn.utils.validation import check_consistent_length

from skclip.metrics._checks import as_weights, check_scores, label_columns
from skclip.utils._arrays import row_batches
from skclip.utils._base import SkclipWarning

# logarithms of the inverse temperatures that are tried; those of scikit-learn
_LOG_BOUNDS = (-10.0, 10.0)


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
    The likelihood is convex in 1 / T: the root of its derivative is found in about 15 passes over the logits, in
    float64 and in blocks of rows.

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

    def slope(log_beta: float) -> float:
        return _slope(scores, codes, weights, np.exp(log_beta))

    low, high = _LOG_BOUNDS
    if slope(high) <= 0.0:
        return _at_the_bound(float(np.exp(-high)), "the largest logit is that of the label in every row that counts")
    if slope(low) >= 0.0:
        return _at_the_bound(float(np.exp(-low)), "the logits predict the labels no better than chance")
    return float(np.exp(-brentq(slope, low, high, xtol=1e-12, rtol=1e-14)))


def _slope(scores: NDArray, codes: NDArray, weights: NDArray, beta: float) -> float:
    """Derivative of the summed negative log-likelihood of ``softmax(beta * scores)`` with respect to beta."""
    total = 0.0
    for part in row_batches(len(scores), 24 * scores.shape[1]):
        block = scores[part]
        expected = np.einsum("nk,nk->n", softmax(beta * block, axis=1), block)
        total += float(weights[part] @ (expected - block[np.arange(len(block)), codes[part]]))
    return total


def _at_the_bound(temperature: float, reason: str) -> float:
    warnings.warn(
        f"No temperature is best, as {reason}; it is set to {temperature:.3g}. Calibrate with more rows, and with rows "
        "that the classifier was not fitted to.",
        SkclipWarning,
        stacklevel=3,
    )
    return temperature
