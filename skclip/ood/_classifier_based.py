"""Detectors that read the logits of a classifier: fitting it, and finding the linear map in it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.base import clone, is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.validation import check_consistent_length, check_is_fitted, has_fit_parameter

from skclip.ood._detector import DetectorMixin
from skclip.utils._arrays import check_features, check_prototypes, first_view, row_batches, unit_rows
from skclip.utils._docs import fill_doc
from skclip.utils._logits import get_logits
from skclip.utils._members import copy_feature_names
from skclip.utils._params import HasMethods
from skclip.zero_shot import ZeroShotClassifier

CLASSIFIER_CONSTRAINTS: dict[str, list[Any]] = {"classifier": [HasMethods(["fit", "predict"]), "array-like", None]}

# how far logits may lie from the linear map of `linear_head`, relative to their range: float32 arithmetic
_LINEAR_TOLERANCE = 1e-4
# rows on which it is looked whether they do
_MOST_CHECKED = 1000
# temporaries of the size of the logits that a score makes at most
_N_TEMPORARIES = 6


@fill_doc
class LogitDetectorMixin(DetectorMixin):
    """`DetectorMixin` for scores of the logits of a classifier, which is given X untouched.

    The class has the parameter `classifier` (`CLASSIFIER_CONSTRAINTS`) and defines ``_score_logits(logits)``, for
    float64 logits of a block of rows. One that learns from logits overrides `_learn`.
    """

    _shift_invariant = False  # whether a constant added to all logits of a row leaves the score as it is
    _score_logits: Any
    classifier: Any
    classifier_: Any

    def fit(self, X: Any, y: ArrayLike | None = None, **params: Any) -> Self:
        """Fit the classifier, learn what the score needs, and set the threshold.

        Parameters
        ----------
        %(X_y_detector)s
        **params : dict
            Handed to the ``fit`` of the classifier, through metadata routing where that is enabled: ``sample_weight``,
            for one that takes it. With ``calibration="cv"`` what has one entry per picture is held out with it.

        %(fitted_detector)s
        TypeError
            If `classifier` is no classifier, or offers probabilities only where the score needs logits.
        """
        return self._fit(X, y, params)

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
        check_is_fitted(self)
        return self.classifier_.predict(X)

    def get_metadata_routing(self) -> MetadataRouter:
        """Metadata routing of this object.

        Returns
        -------
        MetadataRouter
            `fit` hands metadata to that of the classifier.
        """
        mapping = MethodMapping().add(caller="fit", callee="fit")
        return MetadataRouter(owner=self).add(classifier=nested_classifier(self.classifier), method_mapping=mapping)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if hasattr(self.classifier, "__sklearn_tags__"):
            tags.input_tags = deepcopy(get_tags(self.classifier).input_tags)
            tags.target_tags.required = _needs_labels(self.classifier)
        else:
            tags.input_tags.three_d_array = True
            tags.target_tags.required = self.classifier is None
        return tags

    def _learn(self, X: Any, y: ArrayLike | None, **params: Any) -> None:
        fit_classifier(self, X, y, **params)

    def _logits(self, X: Any) -> NDArray:
        return get_logits(self.classifier_, X, shift_invariant=self._shift_invariant)

    def _scores(self, X: Any) -> NDArray:
        logits = self._logits(X)
        scores = np.empty(len(logits))
        for part in row_batches(len(logits), 8 * _N_TEMPORARIES * logits.shape[1]):
            scores[part] = self._score_logits(logits[part].astype(np.float64))
        return scores


class LinearDetectorMixin(LogitDetectorMixin):
    """`LogitDetectorMixin` for scores that also read the features and weights of a classifier with a linear head.

    The class defines ``_learn_rows(head, X)``, for all rows of `fit` as they were given, and
    ``_score_rows(rows, logits)``, for a block of rows as the head reads them and their logits, both float64.
    """

    _score_rows: Any
    coef_: NDArray
    intercept_: NDArray
    unit_rows_: bool

    def _learn(self, X: Any, y: ArrayLike | None, **params: Any) -> None:
        rows, _ = check_features(self, X, reset=True)
        fit_classifier(self, X, y, **params)
        head = linear_head(self.classifier_, rows)
        self.coef_, self.intercept_, self.unit_rows_ = head
        self._learn_rows(head, rows)

    def _learn_rows(self, head: LinearHead, X: NDArray) -> None:
        """Nothing, where the head is all that the score needs."""

    def _scores(self, X: Any) -> NDArray:
        X = first_view(*check_features(self, X))
        head = LinearHead(self.coef_, self.intercept_, self.unit_rows_)
        scores = np.empty(len(X))
        for part, rows in head.blocks(X):
            scores[part] = self._score_rows(rows, head.logits(rows))
        return scores


def nested_classifier(classifier: Any) -> Any:
    """The classifier that the parameter `classifier` of a detector stands for, to be cloned.

    Raises
    ------
    TypeError
        If it is no classifier.
    """
    if classifier is None:
        # one room further on the same floor: the default head, known by its public name
        from skclip.adapters import LinearProbeClassifier

        return LinearProbeClassifier()
    if not hasattr(classifier, "fit"):
        return ZeroShotClassifier(prototypes=check_prototypes(classifier, "classifier"))
    if not is_classifier(classifier):
        raise TypeError(f"classifier={classifier!r} is not a classifier.")
    return classifier


def fit_classifier(estimator: Any, X: Any, y: ArrayLike | None, **params: Any) -> None:
    """Set ``classifier_``, ``classes_`` and what the classifier knows of X from the `classifier` of a detector.

    Parameters
    ----------
    estimator : detector
        With the parameter `classifier`.
    X : object
        What the classifier takes.
    y : array-like of shape (n,) or None
    **params : dict
        For the ``fit`` of the classifier.

    Raises
    ------
    ValueError
        If y is None and the classifier needs labels, it takes no ``sample_weight`` that is given, or it is frozen
        without having been fitted.
    TypeError
        If it is no classifier.
    """
    classifier = nested_classifier(estimator.classifier)
    if y is None and _needs_labels(classifier):
        raise ValueError(
            f"{type(estimator).__name__} needs y, the labels of the in-distribution pictures, to fit its "
            f"{type(classifier).__name__}; got None. Wrap a classifier that is fitted in FrozenEstimator."
        )
    estimator.classifier_ = clone(classifier).fit(X, y, **_routed(estimator, classifier, params))
    check_consistent_length(X, y)  # a frozen one has not looked
    if not hasattr(estimator.classifier_, "classes_"):
        raise ValueError(f"{estimator.classifier_!r} knows no classes after fit; fit a classifier before freezing it.")
    estimator.classes_ = estimator.classifier_.classes_
    copy_feature_names(estimator, [estimator.classifier_])


def _needs_labels(classifier: Any) -> bool:
    if isinstance(classifier, FrozenEstimator):
        return False
    if isinstance(classifier, Pipeline):
        return _needs_labels(classifier[-1])
    # the tags of a search do not tell
    inner = getattr(classifier, "estimator", None)
    return get_tags(classifier).target_tags.required or (inner is not None and _needs_labels(inner))


def _routed(estimator: Any, classifier: Any, params: dict[str, Any]) -> dict[str, Any]:
    """What the ``fit`` of the classifier gets of the metadata given to that of the detector."""
    params = {name: value for name, value in params.items() if value is not None}
    if not params:
        return {}
    if get_config()["enable_metadata_routing"]:
        return process_routing(estimator, "fit", **params).classifier.fit
    if "sample_weight" in params and not has_fit_parameter(classifier, "sample_weight"):
        raise ValueError(f"{type(classifier).__name__} takes no sample_weight.")
    return params


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

    def blocks(self, X: NDArray) -> Iterator[tuple[slice, NDArray]]:
        """``(part, z of X[part])`` of consecutive rows, within scikit-learn's ``working_memory``."""
        for part in row_batches(len(X), 8 * (4 * X.shape[1] + _N_TEMPORARIES * len(self.coef))):
            yield part, self.read(X[part])


def linear_head(classifier: Any, X: NDArray) -> LinearHead:
    """The linear map inside a fitted classifier, measured: its logits of zeros and of the unit vectors.

    Whether it reads rows at unit length is measured as well: its logits of twice the rows are then those of the rows.

    Parameters
    ----------
    classifier : classifier
        Fitted on rows of d features; of this package, scikit-learn's linear models, or a pipeline of affine steps.
    X : ndarray of shape (n, d)
        Rows on which the map is compared with the classifier.

    Raises
    ------
    ValueError
        If the logits are not linear in the rows, neither as they are nor at unit length, or not finite.
    TypeError
        If the classifier has no logits.
    """
    n_features = X.shape[1]
    chosen = np.unique(np.linspace(0, len(X) - 1, min(len(X), _MOST_CHECKED)).astype(np.intp))
    # float64, for logits whose terms cancel
    rows = X[chosen].astype(np.float64)
    probes = np.vstack([np.zeros(n_features), np.eye(n_features)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        answers, logits, doubled = (
            np.asarray(get_logits(classifier, asked), dtype=np.float64) for asked in (probes, rows, 2.0 * rows)
        )
    name = type(classifier).__name__
    for given in (answers, logits):
        if not np.isfinite(given).all():
            raise ValueError(f"The logits of {name} are not finite: {given[~np.isfinite(given)][0]}.")
    tolerance = _LINEAR_TOLERANCE * max(float(np.ptp(np.vstack([answers, logits]))), np.finfo(np.float64).tiny)
    unit = bool(np.abs(doubled - logits).max() <= tolerance)
    head = LinearHead((answers[1:] - answers[0]).T, answers[0], unit)
    if np.abs(head.logits(head.read(rows)) - logits).max() > tolerance:
        raise ValueError(
            f"The logits of {name} are not linear in the features; this score reads the weights of a linear head, "
            "such as LinearProbeClassifier, GDAClassifier, ZeroShotClassifier or LogisticRegression."
        )
    return head
