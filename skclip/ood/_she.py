"""Simplified Hopfield energy: likeness to the mean of what was recognised."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skclip.ood._classifier_based import CLASSIFIER_CONSTRAINTS, LogitDetectorMixin, fit_classifier
from skclip.ood._detector import CALIBRATION_CONSTRAINTS
from skclip.utils._arrays import check_features, first_view, row_batches, unit_rows
from skclip.utils._base import SkclipBase, SkclipWarning, stack_level
from skclip.utils._docs import fill_doc
from skclip.utils._moments import class_sums
from skclip.utils._names import rows_of_labels
from skclip.utils._params import StrOptions
from skclip.utils._training import check_target


def _inner_product(rows: NDArray, patterns: NDArray) -> NDArray:
    return np.einsum("nd,nd->n", rows, patterns)


def _cosine(rows: NDArray, patterns: NDArray) -> NDArray:
    return _inner_product(rows, unit_rows(patterns))


def _negative_distance(rows: NDArray, patterns: NDArray) -> NDArray:
    return -np.linalg.norm(rows - patterns, axis=1)


_METRICS: dict[str, Callable[[NDArray, NDArray], NDArray]] = {
    "inner_product": _inner_product,
    "cosine": _cosine,
    "euclidean": _negative_distance,
}


@fill_doc
class SHEDetector(LogitDetectorMixin, SkclipBase):
    """Refuse what is unlike the pictures that were recognised as the class it is taken for.

    ``x . S_k`` [1]_, with k the class that `classifier` predicts for x and S_k the mean of the training rows of class
    k that it recognises: the simplified Hopfield energy, whose sign the paper flips itself. Cheap, and sees pictures
    far from their class in any direction alike; where the noise has few directions, Mahalanobis distances see more.

    Parameters
    ----------
    %(classifier)s
        It is given X, which must hold features here.
    metric : {"inner_product", "cosine", "euclidean"}, default="inner_product"
        Likeness of a row and its pattern; the distance is negated. The paper's choice is the first, which favours
        classes of little spread.
    %(contamination)s
    %(calibration)s

    Attributes
    ----------
    patterns_ : ndarray of shape (K, d)
        S, in the order of `classes_`: means of unit rows, not re-normalised; zeros for a class without rows.
    %(classifier_)s
    %(classes_of_classifier)s
    %(offset_)s
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    NNGuideDetector : Likeness to single training rows, with energies.
    MahalanobisDetector : Distance to the nearest class mean in the noise that classes share.

    Notes
    -----
    Rows are scaled to unit length, for the patterns and for the score; the classifier gets them as they are. With
    views, all of them are rows of `fit`, and view 0 alone is scored.

    Without y, for a classifier that needs none, every training row counts as recognised. A class that has rows but
    none recognised stores the mean of all of them, with a warning.

    Cost: that of the classifier, and O(n d).

    References
    ----------
    .. [1] J. Zhang et al., "Out-of-Distribution Detection based on In-Distribution Data Patterns Memorization with
       Modern Hopfield Energy", ICLR 2023, openreview KkazG4lgKL.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import SHEDetector
    >>> rng = np.random.default_rng(0)
    >>> X = np.repeat(np.eye(4)[:2], 20, axis=0) + 0.1 * rng.normal(size=(40, 4))
    >>> detector = SHEDetector(np.eye(4)[:2]).fit(X, np.repeat([0, 1], 20))
    >>> detector.predict(np.eye(4))
    array([ 1,  1, -1, -1])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **CLASSIFIER_CONSTRAINTS,
        "metric": [StrOptions(set(_METRICS))],
        **CALIBRATION_CONSTRAINTS,
    }

    def __init__(
        self,
        classifier: Any = None,
        *,
        metric: str = "inner_product",
        contamination: float = 0.05,
        calibration: Any = "in_sample",
    ) -> None:
        self.classifier = classifier
        self.metric = metric
        self.contamination = contamination
        self.calibration = calibration

    def _learn(self, X: Any, y: ArrayLike | None, **params: Any) -> None:
        rows, n_views = check_features(self, X, reset=True)
        fit_classifier(self, X, y, **params)
        predicted = self._predicted(rows)
        labels = None if y is None else np.repeat(check_target(self, y), n_views)
        self.patterns_, lost = recognised_means(rows, predicted, labels, self.classes_)
        if lost.size:
            warnings.warn(
                f"{type(self.classifier_).__name__} recognises no picture of class {self.classes_[lost[0]].item()!r} "
                f"({lost.size} of {len(self.classes_)} classes): the mean of all of them is stored instead. Pass a "
                "classifier that knows its training pictures better.",
                SkclipWarning,
                stacklevel=stack_level(),
            )

    def _predicted(self, rows: NDArray) -> NDArray:
        """Position in ``classes_`` of the class predicted for each row."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="X does not have valid feature names")
            return rows_of_labels(self.classes_, self.classifier_.predict(rows), what="predict", source="classes_")

    def _scores(self, X: Any) -> NDArray:
        X = first_view(*check_features(self, X))
        predicted = self._predicted(X)
        scores = np.empty(len(X))
        for part in row_batches(len(X), 8 * 6 * X.shape[1]):
            rows = unit_rows(X[part].astype(np.float64))
            scores[part] = _METRICS[self.metric](rows, self.patterns_[predicted[part]])
        return scores


def recognised_means(
    X: NDArray, predicted: NDArray, labels: NDArray | None, classes: NDArray
) -> tuple[NDArray, NDArray]:
    """Mean unit row of each class over the rows that are predicted rightly.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Rows of any length.
    predicted : ndarray of shape (n,)
        Position in `classes` of the class predicted.
    labels : ndarray of shape (n,) or None
        None takes every prediction as right.
    classes : ndarray of shape (K,)

    Returns
    -------
    means : ndarray of shape (K, d), float64
        Over all rows of the class where none is predicted rightly; zeros where it has no rows.
    lost : ndarray
        Positions of the classes that have rows, none of which is predicted rightly.
    """
    codes = predicted
    if labels is not None:
        places = {label: place for place, label in enumerate(classes.tolist())}
        codes = np.array([places.get(label, -1) for label in labels.tolist()], dtype=np.intp)
    n_classes = len(classes)
    recognised = np.bincount(codes[codes == predicted], minlength=n_classes)
    present = np.bincount(codes[codes >= 0], minlength=n_classes)
    lost = (recognised == 0) & (present > 0)
    kept = (codes == predicted) | (lost[codes] & (codes >= 0))
    counts = np.where(lost, present, recognised)
    sums = class_sums(unit_rows(X[kept].astype(np.float64)), codes[kept], n_classes)
    return sums / np.maximum(counts, 1)[:, None], np.flatnonzero(lost)
