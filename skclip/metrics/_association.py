"""Whether attributes are bound to their object or to anything in the picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skclip.metrics._checks import check_predictions
from skclip.utils._docs import fill_doc


@fill_doc
def cab_score(
    y_true_attr: ArrayLike,
    y_other_attr: ArrayLike,
    y_pred_attr: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Concept association bias: how much an object gets the attribute of the other object in the picture.

    ``CAB = (swap rate - accuracy + 1) / 2``, over the rows whose two attributes differ (elsewhere a swap cannot be
    seen). Asked for the colour of the lemon in a picture of a lemon and an eggplant, a model that takes pictures for
    bags of concepts says purple [1]_. Only the rows where the two attributes differ count, and the formula is this
    package's: the paper compares models by a score that grows with the bias.

    Parameters
    ----------
    y_true_attr : array-like of shape (n,)
        Attribute of the queried object.
    y_other_attr : array-like of shape (n,)
        Attribute of the other object.
    y_pred_attr : array-like of shape (n,)
        Attribute predicted.
    %(sample_weight)s

    Returns
    -------
    float
        0 for a model that is always right, 1 for one that always names the other's attribute, 0.5 without
        preference. Swapping the roles of the objects gives ``1 - CAB``.

    Raises
    ------
    ValueError
        If the two attributes are equal in every row.

    See Also
    --------
    swap_rate : The share of swaps alone.

    References
    ----------
    .. [1] Y. Yamada, Y. Tang, Y. Zhang and I. Yildirim, "When are Lemons Purple? The Concept Association Bias of
       Vision-Language Models", EMNLP 2023, arXiv:2212.12043.

    Examples
    --------
    >>> from skclip.metrics import cab_score
    >>> cab_score(["yellow", "purple", "red"], ["purple", "yellow", "red"], ["purple", "purple", "red"])
    0.5
    """
    right, swapped, weights = _observable(y_true_attr, y_other_attr, y_pred_attr, sample_weight)
    return float((np.average(swapped, weights=weights) - np.average(right, weights=weights) + 1.0) / 2.0)


@fill_doc
def swap_rate(
    y_true_attr: ArrayLike,
    y_other_attr: ArrayLike,
    y_pred_attr: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Share of rows in which the other object's attribute is predicted, of those whose two attributes differ.

    Parameters
    ----------
    y_true_attr : array-like of shape (n,)
        Attribute of the queried object.
    y_other_attr : array-like of shape (n,)
        Attribute of the other object.
    y_pred_attr : array-like of shape (n,)
        Attribute predicted.
    %(sample_weight)s

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If the two attributes are equal in every row.

    References
    ----------
    Y. Yamada, Y. Tang, Y. Zhang and I. Yildirim, "When are Lemons Purple? The Concept Association Bias of
    Vision-Language Models", EMNLP 2023, arXiv:2212.12043.

    Examples
    --------
    >>> from skclip.metrics import swap_rate
    >>> swap_rate(["yellow", "purple", "red"], ["purple", "yellow", "red"], ["purple", "green", "red"])
    0.5
    """
    _, swapped, weights = _observable(y_true_attr, y_other_attr, y_pred_attr, sample_weight)
    return float(np.average(swapped, weights=weights))


def _observable(
    y_true_attr: ArrayLike, y_other_attr: ArrayLike, y_pred_attr: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[NDArray, NDArray, NDArray]:
    """Whether right, whether swapped, and weights of the rows whose two attributes differ."""
    (true, other, pred), weights = check_predictions(
        sample_weight, y_true_attr=y_true_attr, y_other_attr=y_other_attr, y_pred_attr=y_pred_attr
    )
    differ = (true != other) & (weights > 0)
    if not differ.any():
        raise ValueError(
            "y_true_attr and y_other_attr agree in every row that counts, so a swap cannot be observed; pass rows "
            "whose two objects differ in the attribute."
        )
    return pred[differ] == true[differ], pred[differ] == other[differ], weights[differ]
