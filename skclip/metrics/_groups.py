"""Accuracy of parts of a test set: groups, visual factors, cues."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skclip.metrics._checks import as_weights, check_predictions, check_same_length
from skclip.utils._base import SkclipWarning
from skclip.utils._docs import fill_doc
from skclip.utils._names import check_labels


@fill_doc
def group_accuracy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    groups: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
) -> dict[Any, float]:
    """Accuracy within each group.

    With ``groups=y_true`` it is the recall of each class, whose mean is class-balanced accuracy.

    Parameters
    ----------
    %(y_true_y_pred)s
    groups : array-like of shape (n,)
        Group of each row: strings, numbers or booleans.
    %(sample_weight)s
        A group of weight 0 is left out.

    Returns
    -------
    dict of {group: float}
        Sorted by group.

    References
    ----------
    S. Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020, arXiv:1911.08731.

    Examples
    --------
    >>> from skclip.metrics import group_accuracy
    >>> group_accuracy(["cat", "cat", "dog"], ["cat", "dog", "dog"], ["indoor", "outdoor", "outdoor"])
    {'indoor': 1.0, 'outdoor': 0.5}
    """
    (y_true, y_pred), weights = check_predictions(sample_weight, y_true=y_true, y_pred=y_pred)
    groups = check_labels(groups, name="groups")
    check_same_length(y_true=y_true, groups=groups)
    names, codes = np.unique(groups, return_inverse=True)
    mass = np.bincount(codes, weights)
    hits = np.bincount(codes, weights * (y_true == y_pred))
    return {names[g].item(): float(hits[g] / mass[g]) for g in np.flatnonzero(mass)}


@fill_doc
def worst_group_accuracy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    groups: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Smallest accuracy of any group.

    Parameters
    ----------
    %(y_true_y_pred)s
    groups : array-like of shape (n,)
        Group of each row.
    %(sample_weight)s
        A group of weight 0 is left out.

    Returns
    -------
    float

    References
    ----------
    S. Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020, arXiv:1911.08731.

    Examples
    --------
    >>> from skclip.metrics import worst_group_accuracy
    >>> worst_group_accuracy([0, 0, 1], [0, 1, 1], ["indoor", "outdoor", "outdoor"])
    0.5
    """
    return min(group_accuracy(y_true, y_pred, groups, sample_weight=sample_weight).values())


@fill_doc
def factor_accuracy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    factors: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
) -> NDArray:
    """Accuracy on the pictures tagged with each visual factor (pose, background, lighting, ...).

    Unlike groups, factors overlap: a picture may have several tags or none.

    Parameters
    ----------
    %(y_true_y_pred)s
    factors : array-like of shape (n, F) or (n,), bool
        Whether each factor applies to each picture.
    %(sample_weight)s

    Returns
    -------
    ndarray of shape (F,)
        NaN for a factor without pictures.

    Warns
    -----
    SkclipWarning
        If no picture has one of the factors.

    References
    ----------
    B. Idrissi et al., "ImageNet-X: Understanding Model Mistakes with Factor of Variation Annotations", ICLR 2023,
    arXiv:2211.01866.

    Examples
    --------
    >>> from skclip.metrics import factor_accuracy
    >>> factor_accuracy([0, 1, 1], [0, 1, 0], [[True, False], [True, True], [False, True]])
    array([1. , 0.5])
    """
    (y_true, y_pred), weights = check_predictions(sample_weight, y_true=y_true, y_pred=y_pred)
    tags = _check_factors(factors, len(y_true))
    mass = weights @ tags
    empty = np.flatnonzero(mass == 0)
    if empty.size:
        warnings.warn(
            f"No picture has factor {empty[0]} (column of factors); its accuracy is NaN.", SkclipWarning, stacklevel=2
        )
    with np.errstate(invalid="ignore"):
        return (weights * (y_true == y_pred)) @ tags / mass


@fill_doc
def factor_gap(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    factors: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
) -> NDArray:
    """How much accuracy each visual factor costs: accuracy on all pictures less that on the tagged ones.

    Parameters
    ----------
    %(y_true_y_pred)s
    factors : array-like of shape (n, F) or (n,), bool
        Whether each factor applies to each picture.
    %(sample_weight)s

    Returns
    -------
    ndarray of shape (F,)
        Positive where the factor hurts; NaN, with a warning, for a factor without pictures.

    References
    ----------
    B. Idrissi et al., "ImageNet-X: Understanding Model Mistakes with Factor of Variation Annotations", ICLR 2023,
    arXiv:2211.01866.

    Examples
    --------
    >>> from skclip.metrics import factor_gap
    >>> factor_gap([0, 1, 1, 1], [0, 1, 0, 1], [True, False, True, False])
    array([0.25])
    """
    accuracy = factor_accuracy(y_true, y_pred, factors, sample_weight=sample_weight)
    right = check_labels(y_true, name="y_true") == check_labels(y_pred, name="y_pred")
    return np.average(right, weights=as_weights(sample_weight, len(right))) - accuracy


@fill_doc
def shape_bias(
    y_shape: ArrayLike,
    y_texture: ArrayLike,
    y_pred: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    """How often a picture of conflicting cues is named by its shape: ``shape hits / (shape + texture hits)``.

    Pictures whose cues agree, and predictions that are neither cue, do not count [1]_.

    Parameters
    ----------
    y_shape, y_texture : array-like of shape (n,)
        Labels of the shape and of the texture in each picture.
    y_pred : array-like of shape (n,)
        Labels predicted.
    %(sample_weight)s

    Returns
    -------
    float
        Between 0 (texture alone) and 1 (shape alone); NaN if neither was ever named.

    Warns
    -----
    SkclipWarning
        If no prediction is one of two differing cues.

    References
    ----------
    .. [1] R. Geirhos et al., "ImageNet-trained CNNs are biased towards texture; increasing shape bias improves
       accuracy and robustness", ICLR 2019, arXiv:1811.12231.

    Examples
    --------
    >>> from skclip.metrics import shape_bias
    >>> shape_bias(["cat", "cat", "cat"], ["skin", "skin", "cat"], ["cat", "skin", "cat"])
    0.5
    """
    (shape, texture, pred), weights = check_predictions(
        sample_weight, y_shape=y_shape, y_texture=y_texture, y_pred=y_pred
    )
    weights = weights * (shape != texture)
    by_shape, by_texture = weights @ (pred == shape), weights @ (pred == texture)
    if by_shape + by_texture == 0:
        warnings.warn(
            "No prediction is one of two differing cues, so there is no shape bias to measure; it is NaN.",
            SkclipWarning,
            stacklevel=2,
        )
        return float("nan")
    return float(by_shape / (by_shape + by_texture))


def _check_factors(factors: ArrayLike, n_samples: int) -> NDArray:
    """Tags as float64, (n, F)."""
    tags = np.asarray(factors)
    if tags.ndim == 1:
        tags = tags[:, None]
    if tags.ndim != 2 or tags.dtype.kind not in "biuf" or not np.isin(tags, (0, 1)).all():
        raise ValueError(
            f"factors must hold True or False for every picture and factor, (n, F); got shape {tags.shape} of dtype "
            f"{tags.dtype}."
        )
    check_same_length(y_true=range(n_samples), factors=tags)
    return tags.astype(np.float64)
