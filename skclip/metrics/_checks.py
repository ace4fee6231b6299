"""What the metrics ask of their arguments, and how they say no."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_consistent_length

from skclip.utils._arrays import check_weights
from skclip.utils._names import check_labels, rows_of_labels

# how far a row of probabilities may sum from 1: what half precision leaves of a softmax over thousands of classes
_SUM_TOLERANCE = 1e-3


class Probabilities(NamedTuple):
    """Checked predictions of n rows over K classes."""

    codes: NDArray  # (n,) column of the true label
    prob: NDArray  # (n, K) float64
    weights: NDArray  # (n,) float64


class Confidences(NamedTuple):
    """How sure n predictions were, and which were right."""

    confidence: NDArray  # (n,) float64
    correct: NDArray  # (n,) bool
    weights: NDArray  # (n,) float64


def as_weights(sample_weight: ArrayLike | None, n_samples: int) -> NDArray:
    """Weights, (n,), float64; ones where None."""
    weights = check_weights(sample_weight, n_samples)
    return np.ones(n_samples) if weights is None else weights


def label_columns(
    y: ArrayLike, n_columns: int, labels: ArrayLike | None, *, name: str = "y_true", matrix: str = "y_prob"
) -> NDArray:
    """Column of each label of `y`.

    Parameters
    ----------
    y : array-like of shape (n,)
    n_columns : int
        K.
    labels : array-like of shape (K,) or None
        Labels of the columns. None: 0..K-1 where `y` holds nothing else, or the K different labels of `y`, sorted.
    name, matrix : str
        How an error names `y` and what has the columns.

    Raises
    ------
    ValueError
        If the labels of the columns cannot be told, or a label has no column.
    """
    y = check_labels(y, name=name)
    if labels is None:
        if y.dtype.kind in "iu" and len(y) and y.min() >= 0 and y.max() < n_columns:
            return y.astype(np.intp)
        labels, codes = np.unique(y, return_inverse=True)
        if len(labels) == n_columns:
            return codes
        raise ValueError(
            f"{matrix} has {n_columns} columns but {name} holds {len(labels)} different labels that are not "
            f"0..{n_columns - 1}: pass labels=, one for each column (classes_ of the classifier)."
        )
    labels = check_labels(labels, name="labels")
    if len(labels) != n_columns:
        raise ValueError(f"labels holds {len(labels)} labels, but {matrix} has {n_columns} columns; pass one for each.")
    if len(np.unique(labels)) < n_columns:
        raise ValueError("labels repeats a label; every column needs its own.")
    present, codes = np.unique(y, return_inverse=True)
    return rows_of_labels(labels, present, what=name, source="labels")[codes]


def check_scores(name: str, scores: ArrayLike, *, ndim: int = 1, keep_float32: bool = False) -> NDArray:
    """Finite float64 array of `ndim` dimensions with at least one row; or float32 where it was and may stay.

    Raises
    ------
    ValueError
        Naming the first position that is NaN or infinite, or the shape.
    """
    array = np.asarray(scores)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold numbers; got dtype {array.dtype}.")
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension{'s' if ndim > 1 else ''}; got shape {array.shape}.")
    if 0 in array.shape:
        raise ValueError(f"{name} is empty: shape {array.shape}.")
    array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    if not np.isfinite(array).all():
        place = np.argwhere(~np.isfinite(array))[0].tolist()
        raise ValueError(f"{name}[{', '.join(map(str, place))}] is {array[tuple(place)]}; every entry must be finite.")
    return array if keep_float32 else array.astype(np.float64, copy=False)


def check_probabilities(
    y_true: ArrayLike, y_prob: ArrayLike, labels: ArrayLike | None, sample_weight: ArrayLike | None
) -> Probabilities:
    """Labels as columns, and probabilities that are some."""
    prob = check_scores("y_prob", y_prob, ndim=2)
    _check_unit_interval("y_prob", prob)
    sums = prob.sum(axis=1)
    off = np.flatnonzero(np.abs(sums - 1.0) > _SUM_TOLERANCE)
    if off.size:
        raise ValueError(
            f"Row {off[0]} of y_prob sums to {sums[off[0]]:g}, not 1. Logits become probabilities by "
            "scipy.special.softmax(logits, axis=1)."
        )
    check_consistent_length(y_true, prob)
    return Probabilities(label_columns(y_true, prob.shape[1], labels), prob, as_weights(sample_weight, len(prob)))


def check_confidences(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    labels: ArrayLike | None,
    sample_weight: ArrayLike | None,
    *,
    any_score: bool = False,
) -> Confidences:
    """Confidence and correctness of each row: of probabilities (n, K), or as given.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Labels, or with confidences (n,) whether each prediction was right.
    y_prob : array-like of shape (n, K) or (n,)
        Probabilities of the classes, or the confidences themselves.
    labels : array-like of shape (K,) or None
        Of the columns.
    sample_weight : array-like of shape (n,) or None
    any_score : bool
        Whether confidences (n,) may leave [0, 1].
    """
    if np.ndim(y_prob) != 1:
        codes, prob, weights = check_probabilities(y_true, y_prob, labels, sample_weight)
        return Confidences(prob.max(axis=1), prob.argmax(axis=1) == codes, weights)
    if labels is not None:
        raise ValueError("labels belong to the columns of y_prob of shape (n, K); y_prob has one dimension.")
    confidence = check_scores("y_prob", y_prob)
    if not any_score:
        _check_unit_interval("y_prob", confidence)
    check_consistent_length(y_true, confidence)
    correct = np.asarray(y_true)
    if correct.ndim != 1 or correct.dtype.kind not in "biuf" or not np.isin(correct, (0, 1)).all():
        raise ValueError(
            "With y_prob of shape (n,), which holds confidences, y_true tells which predictions were right: True or "
            "False for each. For labels, pass probabilities of shape (n, K)."
        )
    return Confidences(confidence, correct.astype(bool), as_weights(sample_weight, len(confidence)))


def check_accuracies(name: str, values: ArrayLike) -> NDArray:
    """Numbers in [0, 1], of no or one dimension."""
    array = np.asarray(values)
    checked = check_scores(name, np.atleast_1d(array))
    outside = np.flatnonzero((checked < 0.0) | (checked > 1.0))
    if outside.size:
        raise ValueError(f"{name}[{outside[0]}] is {checked[outside[0]]:g}; accuracies lie between 0 and 1.")
    return checked.reshape(array.shape)


def check_same_length(**arrays: ArrayLike) -> None:
    """ValueError naming the parameters where the lengths differ."""
    lengths = {name: len(array) for name, array in arrays.items()}  # type: ignore[arg-type]
    if len(set(lengths.values())) > 1:
        raise ValueError("Different lengths: " + ", ".join(f"{name} {n}" for name, n in lengths.items()) + ".")


def check_predictions(sample_weight: ArrayLike | None = None, **labels: ArrayLike) -> tuple[list[NDArray], NDArray]:
    """Label arrays of one length, in the order given, and weights."""
    arrays = {name: check_labels(values, name=name) for name, values in labels.items()}
    check_same_length(**arrays)
    n_samples = len(next(iter(arrays.values())))
    if n_samples == 0:
        raise ValueError(f"{next(iter(arrays))} is empty.")
    kinds = {name: "text" if array.dtype.kind == "U" else "number" for name, array in arrays.items()}
    if len(set(kinds.values())) > 1:
        raise ValueError(
            "Labels of one kind are needed: " + ", ".join(f"{name} holds {kind}s" for name, kind in kinds.items()) + "."
        )
    return list(arrays.values()), as_weights(sample_weight, n_samples)


def check_share(name: str, value: float, *, low: float = 0.0, high: float = 1.0, closed: bool = True) -> float:
    """A number between `low` and `high`."""
    number = float(value)
    inside = low <= number <= high if closed else low < number < high
    if not inside:
        bounds = f"[{low:g}, {high:g}]" if closed else f"({low:g}, {high:g})"
        raise ValueError(f"{name} must be in {bounds}, got {value!r}.")
    return number


def check_count(name: str, value: int) -> int:
    """A positive whole number."""
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}.")
    return int(value)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """One of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
    return value


def _check_unit_interval(name: str, array: NDArray) -> None:
    # rounding of a float32 softmax may pass 1 by an ulp
    outside = np.argwhere((array < 0.0) | (array > 1.0 + 1e-6))
    if len(outside):
        place = outside[0].tolist()
        raise ValueError(
            f"{name}[{', '.join(map(str, place))}] is {array[tuple(place)]:g}; probabilities lie between 0 and 1."
        )
