"""Open-set classification: the known recognised, the unknown refused."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import auc
from sklearn.utils import Bunch

from skclip.metrics._checks import check_predictions, check_same_length, check_scores
from skclip.metrics._ood import count_from_above, counts_from_above
from skclip.utils._docs import fill_doc


@fill_doc
def oscr_curve(y_true: ArrayLike, y_pred: ArrayLike, scores_in: ArrayLike, scores_out: ArrayLike) -> Bunch:
    """Known pictures accepted and recognised, against unknown pictures accepted, for every threshold.

    The open-set classification rate (OSCR) [1]_: a detector that refuses what its classifier gets wrong loses nothing.

    Parameters
    ----------
    %(y_true_y_pred_known)s
    %(scores_in_out)s

    Returns
    -------
    curve : :class:`~sklearn.utils.Bunch`
        threshold : ndarray of shape (t,)
            Infinity, and the different scores, descending.
        ccr : ndarray of shape (t,)
            Correct classification rate: share of the n pictures at or above the threshold and predicted right. The
            last is the accuracy.
        fpr : ndarray of shape (t,)
            Share of the m pictures at or above the threshold, from 0 to 1.
        area : float
            Area under `ccr` over `fpr`, see `oscr_score`.

    See Also
    --------
    ood_auroc : The area where every prediction is right.

    Notes
    -----
    Both rates count scores at or above the threshold, so that known and unknown pictures of equal score are accepted
    together and the area counts one half of such pairs, as AUROC does. The paper counts known pictures strictly above
    and unknown ones at or above, which counts none: its constant scores have area 0. O((n + m) log(n + m)) time.

    References
    ----------
    .. [1] A. R. Dhamija, M. Guenther and T. Boult, "Reducing Network Agnostophobia", NeurIPS 2018, arXiv:1811.04110.

    Examples
    --------
    >>> from skclip.metrics import oscr_curve
    >>> curve = oscr_curve(["cat", "dog", "dog"], ["cat", "dog", "cat"], [0.9, 0.8, 0.2], [0.5, 0.1])
    >>> curve.ccr.round(2)
    array([0.  , 0.33, 0.67, 0.67, 0.67, 0.67])
    >>> curve.fpr
    array([0. , 0. , 0. , 0.5, 0.5, 1. ])
    """
    inside, outside = check_scores("scores_in", scores_in), check_scores("scores_out", scores_out)
    (truth, predicted), _ = check_predictions(y_true=y_true, y_pred=y_pred)
    check_same_length(y_true=truth, scores_in=inside)
    threshold, _, accepted = counts_from_above(inside, outside)
    recognised = count_from_above(inside[truth == predicted], threshold)
    ccr, fpr = np.r_[0, recognised] / len(inside), np.r_[0, accepted] / len(outside)
    return Bunch(threshold=np.r_[np.inf, threshold], ccr=ccr, fpr=fpr, area=float(auc(fpr, ccr)))


@fill_doc
def oscr_score(y_true: ArrayLike, y_pred: ArrayLike, scores_in: ArrayLike, scores_out: ArrayLike) -> float:
    """Area under the open-set classification rate curve: recognised and accepted, over unknown and accepted.

    The probability that a known picture is predicted right and scores higher than an unknown one, ties counted one
    half [1]_.

    Parameters
    ----------
    %(y_true_y_pred_known)s
    %(scores_in_out)s

    Returns
    -------
    float
        At most the accuracy, which it reaches where every unknown picture scores lower; AUROC where every prediction is
        right.

    See Also
    --------
    oscr_curve : The curve, and how ties count.
    ood_auroc : The same without regard to predictions.

    References
    ----------
    .. [1] A. R. Dhamija, M. Guenther and T. Boult, "Reducing Network Agnostophobia", NeurIPS 2018, arXiv:1811.04110.

    Examples
    --------
    >>> from skclip.metrics import oscr_score
    >>> oscr_score(["cat", "dog", "dog", "cat"], ["cat", "dog", "cat", "cat"], [0.9, 0.8, 0.2, 0.5], [0.5, 0.1])
    0.6875
    """
    return oscr_curve(y_true, y_pred, scores_in, scores_out).area
