"""Detectors that read the logits of a classifier: fitting it, and finding the linear map in it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone, is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.utils import get_tags

from skclip.ood._detector import DetectorMixin
from skclip.utils._arrays import check_prototypes, unit_rows
from skclip.utils._docs import fill_doc
from skclip.utils._logits import get_logits
from skclip.utils._params import HasMethods
from skclip.zero_shot import ZeroShotClassifier

CLASSIFIER_CONSTRAINTS: dict[str, list[Any]] = {"classifier": [HasMethods(["fit", "predict"]), "array-like", None]}

# how far logits may lie from the linear map of `linear_head`, relative to their size: float32 products
_LINEAR_TOLERANCE = 1e-3


@fill_doc
class LogitDetectorMixin(DetectorMixin):
    """`DetectorMixin` for scores of the logits of a classifier, which is given X untouched.

    The class has the parameter `classifier` (`CLASSIFIER_CONSTRAINTS`) and defines ``_score_logits(logits)``.
    """

    _shift_invariant = False  # whether a constant added to all logits of a row leaves the score as it is
    _score_logits: Any
    classifier: Any
    classifier_: Any

    def predict_class(self, X: Any) -> NDArray:
        """Label of each picture, whether it would be refused or not.

        Parameters
        ----------
        X : object
            Pictures, as `fit` takes them.

        Returns
        -------
        ndarray of shape (n,)
        """
        return self.classifier_.predict(X)

    def _learn(self, X: Any, y: ArrayLike | None) -> None:
        fit_classifier(self, X, y)

    def _scores(self, X: Any) -> NDArray:
        return self._score_logits(get_logits(self.classifier_, X, shift_invariant=self._shift_invariant))


def fit_classifier(estimator: Any, X: Any, y: ArrayLike | None) -> None:
    """Set ``classifier_``, ``classes_`` and what the classifier knows of X from the `classifier` of a detector.

    Raises
    ------
    ValueError
        If y is None and the classifier needs labels.
    TypeError
        If it is no classifier.
    """
    classifier = estimator.classifier
    if classifier is None:
        # one room further on the same floor: the default head, known by its public name
        from skclip.adapters import LinearProbeClassifier

        classifier = LinearProbeClassifier()
    elif not hasattr(classifier, "fit"):
        classifier = ZeroShotClassifier(prototypes=check_prototypes(classifier, "classifier"))
    if not is_classifier(classifier):
        raise TypeError(f"classifier={classifier!r} is not a classifier.")
    if y is None and not isinstance(classifier, FrozenEstimator) and get_tags(classifier).target_tags.required:
        raise ValueError(
            f"{type(estimator).__name__} needs y, the labels of the in-distribution pictures, to fit its "
            f"{type(classifier).__name__}; got None. Wrap a classifier that is fitted in FrozenEstimator."
        )
    estimator.classifier_ = clone(classifier).fit(X, y)
    estimator.classes_ = estimator.classifier_.classes_
    for name in ("n_features_in_", "feature_names_in_"):
        if hasattr(estimator.classifier_, name):
            setattr(estimator, name, getattr(estimator.classifier_, name))


class LinearHead(NamedTuple):
    """``logits = z coef^T + intercept`` with z the rows as the classifier reads them."""

    coef: NDArray  # (K, d)
    intercept: NDArray  # (K,)
    unit: bool  # whether z is the row divided by its length, as skclip's classifiers read it

    def read(self, X: NDArray) -> NDArray:
        """z of rows (n, d), float64."""
        X = X.astype(np.float64)
        return unit_rows(X) if self.unit else X

    def logits(self, read: NDArray) -> NDArray:
        return read @ self.coef.T + self.intercept


def linear_head(classifier: Any, X: NDArray) -> LinearHead:
    """The linear map inside a fitted classifier, measured: its logits of zeros and of the unit vectors.

    Parameters
    ----------
    classifier : classifier
        Fitted on rows of d features; of this package, scikit-learn's linear models, or a pipeline of affine steps.
    X : ndarray of shape (n, d)
        Rows on which the map is compared with the classifier.

    Raises
    ------
    ValueError
        If the logits are not linear in the rows, neither as they are nor at unit length.
    """
    n_features = X.shape[1]
    probes = np.vstack([np.zeros(n_features), np.eye(n_features)])
    answers = np.asarray(get_logits(classifier, probes), dtype=np.float64)
    intercept, coef = answers[0], (answers[1:] - answers[0]).T
    logits = np.asarray(get_logits(classifier, X), dtype=np.float64)
    scale = max(float(np.abs(logits).max()), np.finfo(np.float64).tiny)
    for unit in (True, False):
        head = LinearHead(coef, intercept, unit)
        if np.abs(head.logits(head.read(X)) - logits).max() <= _LINEAR_TOLERANCE * scale:
            return head
    raise ValueError(
        f"The logits of {type(classifier).__name__} are not linear in the features; this score reads the weights of a "
        "linear head, such as LinearProbeClassifier, GDAClassifier, ZeroShotClassifier or LogisticRegression."
    )
