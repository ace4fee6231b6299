"""What every adapter does with the training set first."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length

from skclip.utils._arrays import check_features, check_weights
from skclip.utils._base import forget_fit
from skclip.utils._names import check_labels, rows_of_labels


class Training(NamedTuple):
    """A checked training set of n pictures with V views each."""

    X: NDArray  # (n * V, d) as given, of any length; row i * V + v is view v of picture i
    codes: NDArray  # (n,) class of each picture, 0..K-1
    weights: NDArray | None  # (n,)
    n_views: int
    kept: NDArray  # (n,) positions of these pictures in what was passed


def check_n_classes(estimator: Any, n_least: int = 2) -> None:
    """Refuse ``classes_`` of one class where that is not enough."""
    if len(estimator.classes_) < n_least:
        raise ValueError(
            f"y holds one class only, {estimator.classes_[0].item()!r}; {type(estimator).__name__} needs at least "
            "two classes."
        )


def check_training(
    estimator: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None, *, n_least: int = 2
) -> Training:
    """Validate X, y and weights of `fit`, and set ``classes_`` (and ``n_features_in_``) of `estimator`, which forgets
    an earlier fit.

    Pictures of weight 0 are left out.

    Raises
    ------
    ValueError
        If y holds one class only and `n_least` is 2, or fits no classification, every row of a class is all zeros, or
        X, y and weights differ in length.
    """
    forget_fit(estimator)
    X, n_views = check_features(estimator, X, reset=True)
    y = check_target(estimator, y)
    check_consistent_length(X[::n_views], y)
    weights = check_weights(sample_weight, len(y))
    X, y, weights, kept = _without_weightless(X, y, weights, n_views)
    estimator.classes_, codes = np.unique(y, return_inverse=True)
    check_n_classes(estimator, n_least)
    check_directions(X, codes, estimator.classes_, n_views)
    return Training(X, codes, weights, n_views, kept)


def check_chunk(
    estimator: Any,
    X: Any,
    y: ArrayLike,
    classes: ArrayLike | None,
    sample_weight: ArrayLike | None,
    *,
    first: bool,
    n_least: int = 2,
) -> Training:
    """Validate what `partial_fit` is given, and set ``classes_`` (and ``n_features_in_``) of `estimator` when it is
    the `first` chunk. A chunk may lack classes; there must be at least `n_least` in all.

    Raises
    ------
    ValueError
        If the first call lacks `classes`, a later one changes them, y holds another label, or as `check_training`.
    """
    if first and classes is None:
        raise ValueError("classes must be passed on the first call to partial_fit.")
    X, n_views = check_features(estimator, X, reset=first)
    y = check_target(estimator, y)
    check_consistent_length(X[::n_views], y)
    weights = check_weights(sample_weight, len(y))
    known = estimator.classes_ if classes is None else np.unique(check_labels(classes, name="classes"))
    if len(known) < n_least:
        raise ValueError(
            f"classes holds one class only, {known[0].item()!r}; {type(estimator).__name__} needs at least two classes."
        )
    if not first and not np.array_equal(known, estimator.classes_):
        raise ValueError(
            f"classes={known.tolist()} differs from the classes of the first call, {estimator.classes_.tolist()}."
        )
    X, y, weights, kept = _without_weightless(X, y, weights, n_views)
    codes = rows_of_labels(known, y, source="classes")
    check_directions(X, codes, known, n_views)
    estimator.classes_ = known
    return Training(X, codes, weights, n_views, kept)


def _without_weightless(
    X: NDArray, y: NDArray, weights: NDArray | None, n_views: int
) -> tuple[NDArray, NDArray, NDArray | None, NDArray]:
    """The pictures whose weight is not 0, and their positions."""
    if weights is None or weights.all():
        return X, y, weights, np.arange(len(y))
    kept = np.flatnonzero(weights)
    X = X.reshape(len(y), n_views, -1)[kept].reshape(-1, X.shape[1])
    return X, y[kept], weights[kept], kept


def check_target(estimator: Any, y: ArrayLike) -> NDArray:
    """y as a one-dimensional array of labels of one type."""
    if y is None:
        raise ValueError(
            f"{type(estimator).__name__} requires y to be passed, but the target y is None. Expected "
            "array-like (array or non-string sequence), got None."
        )
    labels = column_or_1d(y, dtype=None, warn=True) if hasattr(y, "shape") else y
    labels = check_labels(labels)
    assert_all_finite(labels, input_name="y")
    # other kinds cannot be a regression target, and few shots would draw a warning
    if labels.dtype.kind == "f":
        check_classification_targets(labels)
    return labels


def check_directions(X: NDArray, codes: NDArray, classes: NDArray, n_views: int) -> None:
    """Refuse a class all of whose rows are zeros: they have no direction, and so no cosine with anything."""
    zero = ~X.any(axis=1)
    if not zero.any():
        return
    codes = np.repeat(codes, n_views)
    empty = np.setdiff1d(codes[zero], codes[~zero])
    if empty.size:
        raise ValueError(
            f"Every row of class {classes[empty[0]].item()!r} is all zeros, and {int(zero.sum())} of the {len(X)} rows "
            "of X are; features have a direction. Were these pictures encoded?"
        )


def validation_split(codes: NDArray, fraction: float, rng: np.random.RandomState) -> tuple[NDArray, NDArray]:
    """Positions to train on and to stop early by: `fraction` of each class, rounded up, but never a whole class."""
    order = rng.permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    counts = np.bincount(codes)
    held = np.minimum(np.ceil(fraction * counts), np.maximum(counts - 1, 0))
    rank = np.arange(len(codes)) - np.searchsorted(codes[order], codes[order])
    chosen = rank < held[codes[order]]
    if not chosen.any():
        raise ValueError(
            "early_stopping holds out pictures, but every class has a single one; pass early_stopping=False."
        )
    return np.sort(order[~chosen]), np.sort(order[chosen])
