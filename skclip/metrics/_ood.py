"""How well a score tells known pictures from unknown ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch

from skclip.metrics._checks import check_choice, check_scores, check_share
from skclip.utils._docs import fill_doc

FPR_RULES = ("at_least", "first", "closest")

Kind = Literal["in", "out"]
Rule = Literal["at_least", "first", "closest"]


@fill_doc
def ood_auroc(scores_in: ArrayLike, scores_out: ArrayLike) -> float:
    """Probability that an in-distribution picture scores higher than one that is not, ties counted one half.

    Parameters
    ----------
    %(scores_in_out)s

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


@fill_doc
def ood_aupr(
    scores_in: ArrayLike,
    scores_out: ArrayLike,
    *,
    positive: Kind = "in",
    interpolation: Literal["step", "linear"] = "step",
) -> float:
    """Area under the precision-recall curve (average precision) of finding one of the two kinds of picture.

    Parameters
    ----------
    %(scores_in_out)s
    positive : {"in", "out"}, default="in"
        What is to be found: "in" ranks from the highest score down, "out" from the lowest up.
    interpolation : {"step", "linear"}, default="step"
        Between two thresholds: "step" is average precision, which a threshold can reach. "linear" is the trapezoidal
        rule of OpenOOD and pytorch-ood, from precision 1 at recall 0; it is too high where scores are tied or few.

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
    inside, outside = _positive_above(scores_in, scores_out, positive)
    linear = check_choice("interpolation", interpolation, ("step", "linear")) == "linear"
    counts = counts_from_above(inside, outside)
    precision = counts.inside / (counts.inside + counts.outside)
    steps = np.diff(counts.inside, prepend=0)
    if linear:
        precision = (precision + np.r_[1.0, precision[:-1]]) / 2.0
    return float(steps @ precision / len(inside))


@fill_doc
def fpr_at_tpr(
    scores_in: ArrayLike,
    scores_out: ArrayLike,
    *,
    tpr: float = 0.95,
    rule: Rule = "at_least",
    positive: Kind = "in",
) -> float:
    """Share of unknown pictures accepted by the threshold that keeps the share `tpr` of known ones (FPR95).

    Parameters
    ----------
    %(scores_in_out)s
    tpr : float, default=0.95
        Share of in-distribution pictures to keep, above 0.
    %(fpr_rule)s
    positive : {"in", "out"}, default="in"
        "out" exchanges the roles: the share of known pictures refused by the threshold that finds `tpr` of the unknown
        ones. OpenOOD since 1.5 and pytorch-ood print that (``rule="first", positive="out"``), most papers the other.

    Returns
    -------
    float
        Between 0 and 1; smaller is better.

    References
    ----------
    D. Hendrycks, M. Mazeika and T. Dietterich, "Deep Anomaly Detection with Outlier Exposure", ICLR 2019,
    arXiv:1812.04606.

    Examples
    --------
    >>> from skclip.metrics import fpr_at_tpr
    >>> fpr_at_tpr([0.9, 0.8, 0.7, 0.6], [0.75, 0.5, 0.4, 0.3], tpr=0.75)
    0.25
    """
    inside, outside = _positive_above(scores_in, scores_out, positive)
    return _rates_at_tpr(inside, outside, tpr, rule)[1]


@fill_doc
def detection_error(
    scores_in: ArrayLike,
    scores_out: ArrayLike,
    *,
    tpr: float | None = None,
    rule: Rule = "at_least",
    prior: float = 0.5,
) -> float:
    """Probability that a threshold decides wrongly: the best threshold, or that which keeps `tpr` of the known.

    ``prior * (1 - TPR) + (1 - prior) * FPR``, with TPR and FPR the shares of known and of unknown pictures at or above
    the threshold.

    Parameters
    ----------
    %(scores_in_out)s
    tpr : float, default=None
        None is the minimum over all thresholds: one minus the "detection accuracy" of Lee et al. [2]_, and what the
        code of ODIN computes. 0.95 is the definition in the paper of ODIN [1]_, at the threshold of `rule`.
    %(fpr_rule)s
    prior : float, default=0.5
        Probability that a picture is in-distribution; one half in both papers.

    Returns
    -------
    float
        Smaller is better. The minimum is at most ``min(prior, 1 - prior)``, what refusing or accepting everything
        costs.

    References
    ----------
    .. [1] S. Liang, Y. Li and R. Srikant, "Enhancing the Reliability of Out-of-distribution Image Detection in Neural
       Networks", ICLR 2018, arXiv:1706.02690.
    .. [2] K. Lee, K. Lee, H. Lee and J. Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples
       and Adversarial Attacks", NeurIPS 2018, arXiv:1807.03888.

    Examples
    --------
    >>> from skclip.metrics import detection_error
    >>> known, unknown = [0.9, 0.8, 0.7, 0.2], [0.6, 0.5, 0.4, 0.1]
    >>> detection_error(known, unknown)
    0.125
    >>> detection_error(known, unknown, tpr=0.95)
    0.375
    """
    inside, outside = check_scores("scores_in", scores_in), check_scores("scores_out", scores_out)
    prior = check_share("prior", prior)
    if tpr is not None:
        kept, accepted = _rates_at_tpr(inside, outside, tpr, rule)
        return float(prior * (1.0 - kept) + (1.0 - prior) * accepted)
    check_choice("rule", rule, FPR_RULES)
    counts = counts_from_above(inside, outside)
    errors = prior * (1.0 - counts.inside / len(inside)) + (1.0 - prior) * counts.outside / len(outside)
    return float(min(errors.min(), prior))  # a threshold above all scores refuses everything


def near_far_average(values: Mapping[str, float], *, near: Sequence[str], far: Sequence[str] | None = None) -> Bunch:
    """Mean over the near sets, mean over the far sets, and the mean of these two.

    As OpenOOD averages [1]_: near sets resemble the known classes, far ones do not, and there are often more of one
    kind, which the mean over all sets would favour.

    Parameters
    ----------
    values : {name: float}
        One figure for each set of unknown pictures.
    near : sequence of str
        Names of the near sets.
    far : sequence of str, default=None
        Names of the far sets; None is all others. Sets in neither do not count.

    Returns
    -------
    averages : :class:`~sklearn.utils.Bunch`
        near, far : float
            Means of the groups; NaN for one without sets.
        mean : float
            ``(near + far) / 2``, or the mean of the only group there is.

    References
    ----------
    .. [1] J. Zhang et al., "OpenOOD v1.5: Enhanced Benchmark for Out-of-Distribution Detection", 2023,
       arXiv:2306.09301.

    Examples
    --------
    >>> from skclip.metrics import near_far_average
    >>> averages = near_far_average({"SSB-hard": 0.5, "Textures": 0.75, "iNaturalist": 1.0}, near=["SSB-hard"])
    >>> averages.near, averages.far, averages.mean
    (0.5, 0.875, 0.6875)
    """
    far = [name for name in values if name not in near] if far is None else far
    groups = {}
    for group, names in (("near", near), ("far", far)):
        if isinstance(names, str):
            raise ValueError(f"{group} must be a sequence of names, got the text {names!r}; pass [{names!r}].")
        unknown = [name for name in names if name not in values]
        if unknown:
            raise ValueError(f"{group} names {unknown[0]!r}, which is none of the sets {list(values)}.")
        groups[group] = float(np.mean([values[name] for name in names])) if len(names) else float("nan")
    both = [name for name in near if name in far]
    if both:
        raise ValueError(f"{both[0]!r} is both near and far.")
    filled = [groups[group] for group, names in (("near", near), ("far", far)) if len(names)]
    if not filled:
        raise ValueError("near and far name no set; there is nothing to average.")
    return Bunch(**groups, mean=float(np.mean(filled)))


class Counts(NamedTuple):
    """How many known and unknown pictures are at or above each threshold."""

    threshold: NDArray  # (t,) every different score, descending
    inside: NDArray  # (t,)
    outside: NDArray  # (t,)


def counts_from_above(inside: NDArray, outside: NDArray) -> Counts:
    """Counts at every different score."""
    threshold = np.unique(np.concatenate([inside, outside]))[::-1]
    return Counts(threshold, count_from_above(inside, threshold), count_from_above(outside, threshold))


def count_from_above(scores: NDArray, threshold: NDArray) -> NDArray:
    """How many scores are at or above each threshold."""
    return len(scores) - np.searchsorted(np.sort(scores), threshold, side="left")


def _positive_above(scores_in: ArrayLike, scores_out: ArrayLike, positive: Kind) -> tuple[NDArray, NDArray]:
    """Scores of what is to be found, and of the rest, with what is to be found above."""
    inside, outside = check_scores("scores_in", scores_in), check_scores("scores_out", scores_out)
    return (inside, outside) if check_choice("positive", positive, ("in", "out")) == "in" else (-outside, -inside)


def _rates_at_tpr(inside: NDArray, outside: NDArray, tpr: float, rule: Rule) -> tuple[float, float]:
    """Shares of both accepted by the threshold that keeps the share `tpr` of `inside`."""
    if not check_share("tpr", tpr) > 0.0:
        raise ValueError(f"tpr must be above 0, got {tpr!r}.")
    if check_choice("rule", rule, FPR_RULES) == "closest":
        threshold = _closest_threshold(inside, outside, tpr)
    else:
        # 1 - 0.9 is a little less than 0.1, and would lose a rank where the quantile is one of the scores
        steps = len(inside) - (rule == "at_least")
        place = min(int(np.floor(np.round(steps * (1.0 - tpr), 9))), len(inside) - 1)
        threshold = np.partition(inside, place)[place]
    return float(np.mean(inside >= threshold)), float(np.mean(outside >= threshold))


def _closest_threshold(inside: NDArray, outside: NDArray, tpr: float) -> float:
    counts = counts_from_above(inside, outside)
    distance = np.abs(counts.inside / len(inside) - tpr)
    # thresholds descend; those below the lowest known score keep nobody more
    distance[np.argmax(counts.inside == len(inside)) + 1 :] = np.inf
    return counts.threshold[np.flatnonzero(distance == distance.min())[-1]]
