"""How well a score tells known pictures from unknown ones."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skclip.metrics._checks import check_choice, check_scores, check_share


def ood_auroc(scores_in: ArrayLike, scores_out: ArrayLike) -> float:
    """Probability that an in-distribution picture scores higher than one that is not, ties counted one half.

    Parameters
    ----------
    scores_in : array-like of shape (n,)
        Scores of in-distribution pictures: larger = more in-distribution, as from ``score_samples``.
    scores_out : array-like of shape (m,)
        Scores of the others.

    Returns
    -------
    float
        1 for perfect separation, 0.5 for scores that say nothing (constant ones among them).

    Notes
    -----
    The area under the receiver operating characteristic, from ranks: O((n + m) log m) time.

    References
    ----------
    D. Hendrycks and K. Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
    Networks", ICLR 2017, arXiv:1610.02136.

    Examples
    --------
    >>> from skclip.metrics import ood_auroc
    >>> ood_auroc([0.9, 0.8, 0.5], [0.5, 0.1])
    0.9166666666666666
    """
    # both sorted: neighbouring look-ups then stay in cache
    inside, outside = np.sort(check_scores("scores_in", scores_in)), np.sort(check_scores("scores_out", scores_out))
    below = np.searchsorted(outside, inside, side="left") + np.searchsorted(outside, inside, side="right")
    return float(below.sum() / (2.0 * len(inside) * len(outside)))


def ood_aupr(scores_in: ArrayLike, scores_out: ArrayLike, *, positive: Literal["in", "out"] = "in") -> float:
    """Area under the precision-recall curve (average precision) of finding one of the two kinds of picture.

    Parameters
    ----------
    scores_in : array-like of shape (n,)
        Scores of in-distribution pictures: larger = more in-distribution.
    scores_out : array-like of shape (m,)
        Scores of the others.
    positive : {"in", "out"}, default="in"
        What is to be found: "in" ranks from the highest score down, "out" from the lowest up.

    Returns
    -------
    float
        1 for perfect separation. Scores that say nothing get the share of positives, so that figures on different
        mixtures do not compare.

    Notes
    -----
    Equal scores are one threshold, as in :func:`sklearn.metrics.average_precision_score`.

    References
    ----------
    D. Hendrycks and K. Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in Neural
    Networks", ICLR 2017, arXiv:1610.02136.

    Examples
    --------
    >>> from skclip.metrics import ood_aupr
    >>> ood_aupr([0.9, 0.8], [0.1, 0.2, 0.3])
    1.0
    """
    inside, outside = check_scores("scores_in", scores_in), check_scores("scores_out", scores_out)
    if check_choice("positive", positive, ("in", "out")) == "out":
        inside, outside = -outside, -inside
    hits, alarms = _counts_from_above(inside, outside)
    steps = np.diff(hits, prepend=0)
    return float(steps @ (hits / (hits + alarms)) / len(inside))


def fpr_at_tpr(
    scores_in: ArrayLike,
    scores_out: ArrayLike,
    *,
    tpr: float = 0.95,
    rule: Literal["at_least", "closest"] = "at_least",
) -> float:
    """Share of unknown pictures accepted by the threshold that keeps the share `tpr` of known ones (FPR95).

    Parameters
    ----------
    scores_in : array-like of shape (n,)
        Scores of in-distribution pictures: larger = more in-distribution.
    scores_out : array-like of shape (m,)
        Scores of the others.
    tpr : float, default=0.95
        Share of in-distribution pictures to keep, above 0.
    rule : {"at_least", "closest"}, default="at_least"
        Published figures differ in the threshold.

        - "at_least": the lower ``1 - tpr`` quantile of `scores_in` (``method="lower"``), so that no less than `tpr`
          is kept.
        - "closest": of all scores the one whose recall is closest to `tpr`, the lowest of several: what the code
          handed on from outlier exposure [1]_ to MCM does. With few pictures it may keep less than `tpr`.

    Returns
    -------
    float
        Between 0 and 1; smaller is better.

    References
    ----------
    .. [1] D. Hendrycks, M. Mazeika and T. Dietterich, "Deep Anomaly Detection with Outlier Exposure", ICLR 2019,
       arXiv:1812.04606.

    Examples
    --------
    >>> from skclip.metrics import fpr_at_tpr
    >>> fpr_at_tpr([0.9, 0.8, 0.7, 0.6], [0.75, 0.5, 0.4, 0.3], tpr=0.75)
    0.25
    """
    inside, outside = check_scores("scores_in", scores_in), check_scores("scores_out", scores_out)
    if not check_share("tpr", tpr) > 0.0:
        raise ValueError(f"tpr must be above 0, got {tpr!r}.")
    if check_choice("rule", rule, ("at_least", "closest")) == "at_least":
        # 1 - 0.9 is a little less than 0.1, and would lose a rank where the quantile is one of the scores
        place = int(np.floor(np.round((len(inside) - 1) * (1.0 - tpr), 9)))
        return float(np.mean(outside >= np.partition(inside, place)[place]))
    hits, alarms = _counts_from_above(inside, outside)
    distance = np.abs(hits / len(inside) - tpr)
    # thresholds descend; those below the lowest known score keep nobody more
    distance[np.argmax(hits == len(inside)) + 1 :] = np.inf
    chosen = np.flatnonzero(distance == distance.min())[-1]
    return float(alarms[chosen] / len(outside))


def _counts_from_above(inside: NDArray, outside: NDArray) -> tuple[NDArray, NDArray]:
    """How many of each are at or above every different score, from the highest score down."""
    thresholds = np.unique(np.concatenate([inside, outside]))[::-1]
    counts = [len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left") for scores in (inside, outside)]
    return counts[0], counts[1]
