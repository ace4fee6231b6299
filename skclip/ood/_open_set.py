"""A classifier that answers with one of its classes, or says that a picture is of none of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from numbers import Real
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import get_tags
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import (
    _check_method_params,
    _num_samples,
    check_consistent_length,
    check_is_fitted,
    has_fit_parameter,
)

from skclip.ood._classifier_based import CLASSIFIER_CONSTRAINTS, nested_classifier
from skclip.ood._detector import folds
from skclip.ood._msp import MSPDetector
from skclip.ood._outlier_view import OutlierView
from skclip.utils._arrays import check_weights, take_rows
from skclip.utils._base import SkclipBase, forget_fit
from skclip.utils._docs import fill_doc
from skclip.utils._members import copy_feature_names, copy_input_tags
from skclip.utils._params import HasMethods, Interval, StrOptions, check_parameters, check_unrouted
from skclip.utils._training import check_target

_KINDS = {"U": "strings", "b": "booleans"}


def _classifier_has(method: str) -> Callable[[OpenSetClassifier], bool]:
    def check(self: OpenSetClassifier) -> bool:
        classifier = self.classifier_ if hasattr(self, "classifier_") else nested_classifier(self.classifier)
        getattr(classifier, method)  # the classifier's own AttributeError says why
        return True

    return check


@fill_doc
class OpenSetClassifier(ClassifierMixin, SkclipBase):
    """Classify pictures of known classes and refuse all others: any classifier, any detector, and a threshold.

    `predict` gives the label of the classifier where the score of the detector reaches `threshold_`, and
    `reject_label_` where it does not. Both are given X untouched, so that pictures and features work alike.

    Parameters
    ----------
    classifier : classifier or array-like of shape (K, d), default=None
        Who names the class; cloned and fitted, and kept as it is in a `FrozenEstimator`. An array holds one prototype
        per class. None is `LinearProbeClassifier`.
    detector : estimator, default=None
        Whose ``score_samples`` decides, larger = more in-distribution: a detector of this package or of scikit-learn;
        cloned and fitted on the pictures of known classes. Where its parameter `classifier` is None it reads the
        classifier fitted here, which is then fitted once. None is ``score_samples`` of the classifier where it has
        that, else `MSPDetector` of the classifier.
    reject_label : label, default=None
        What `predict` says of refused pictures: of the kind of the labels of y, and none of the known classes. Rows
        of y that carry it are pictures of unknown classes. None chooses a label that y lacks: "unknown" for strings,
        -1 for numbers (the smallest class less 1 where there are negative ones).
    threshold : {"tpr", "cost"} or float, default="tpr"
        How `threshold_` is found: so that the share `tpr` of pictures of known classes is answered; so that answers and
        refusals cost least; or a score as it is.
    tpr : float, default=0.95
        Share of pictures of known classes to answer. 1 refuses nothing, 0 everything. Only with ``threshold="tpr"``.
    cost_rejection : float, default=0.2
        Cost of a refusal, whatever the picture shows. Only with ``threshold="cost"``, as all below.
    cost_error : float, default=1.0
        Cost of a wrong answer to a picture of a known class.
    cost_unknown : float, default=None
        Cost of an answer to a picture of an unknown class, which is always wrong. None is `cost_error`.
    unknown_rate : float, default=None
        Share of pictures of unknown classes to be expected, in [0, 1). None is their share among those that set the
        threshold.
    calibration : {"cv", "in_sample"} or tuple (X, y), default="cv"
        Pictures that set the threshold: those of `fit`, each answered and scored by members fitted without its fold
        (five folds, or as many as the smallest class has pictures), so that of pictures to come about the share `tpr`
        is answered, and rather more where the members miss a fifth of few pictures; those of `fit` as they are, which
        members that know their training pictures flatter; or others, with labels (classes, or `reject_label_`), none of
        which `fit` has seen.

    Attributes
    ----------
    classifier_ : classifier
        Fitted on the pictures of known classes.
    detector_ : estimator
        The same. Its own threshold, if it has one, is not used.
    classes_ : ndarray of shape (K,)
        Known labels, those of `classifier_`.
    reject_label_ : label
        What `predict` says of refused pictures.
    threshold_ : float
        Lowest score that is answered; -inf refuses nothing, inf everything.
    n_features_in_ : int
        Where the classifier tells.
    feature_names_in_ : ndarray
        The same.

    See Also
    --------
    MSPDetector : A detector alone.
    sklearn.model_selection.TunedThresholdClassifierCV : Moves the threshold between two known classes.

    Notes
    -----
    It is a classifier: ``decision_function``, ``logits`` and ``predict_proba`` are those of `classifier_` for the
    known classes, where it has them, whether a picture is refused or not. `score_samples` is that of `detector_`, and
    `is_known` the verdict, ``score_samples(X) >= threshold_``.

    ``score(X, y)`` is accuracy: rows of y that are `reject_label_` count as right when refused, and a known picture
    that is refused counts as wrong.

    ``threshold="cost"`` refuses where an answer is expected to cost more than a refusal [1]_. A refusal costs
    `cost_rejection`; an answer costs nothing where it is right, `cost_error` where it is wrong, `cost_unknown` where
    the class is unknown. `threshold_` minimises the sum over the calibration pictures, of several minima the one with
    the fewest refusals; that is where the cost of an answer as a falling step function of the score (isotonic
    regression) passes `cost_rejection`. Without pictures of unknown classes it knows nothing of them and guards
    against wrong answers alone. Dearer answers never refuse less.

    Rows labelled with a `reject_label` are not shown to the members. Under ``threshold="tpr"`` they set nothing, so
    that searches over a data set with pictures of unknown classes count them in their scores.

    ``sample_weight`` goes to the classifier, and to a detector whose ``fit`` names it; other metadata through metadata
    routing. The threshold counts every picture once.

    A member in a `FrozenEstimator` is not fitted: with "cv" and "in_sample" give `fit` pictures that it has not seen.
    A detector with a classifier of its own shares a frozen one:
    ``OpenSetClassifier(frozen, MSPDetector(frozen))``.

    Cost: one fit of both members, five more with ``calibration="cv"``; a prediction of each. Thresholds of the members
    themselves are not used: leave their `calibration` at "in_sample", that of a `COOkeDClassifier` at None.

    References
    ----------
    .. [1] C. K. Chow, "On Optimum Recognition Error and Reject Tradeoff", IEEE Transactions on Information Theory
       16(1), 1970.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import MSPDetector, OpenSetClassifier
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["cat", "dog"], 50)
    >>> X = np.eye(2, 8).repeat(50, axis=0) + 0.1 * rng.normal(size=(100, 8))
    >>> clf = OpenSetClassifier(detector=MSPDetector()).fit(X, y)
    >>> clf.predict([[1.0] + 7 * [0.0], [1.0] + 7 * [1.0]])
    array(['cat', 'unknown'], dtype='<U7')
    """

    _set_last = "threshold_"
    _parameter_constraints: dict[str, list[Any]] = {
        **CLASSIFIER_CONSTRAINTS,
        "detector": [HasMethods(["fit", "score_samples"]), None],
        "reject_label": [str, bool, Real, None],
        "threshold": [StrOptions({"tpr", "cost"}), Interval(Real, None, None, closed="both")],
        "tpr": [Interval(Real, 0, 1, closed="both")],
        "cost_rejection": [Interval(Real, 0, None, closed="left")],
        "cost_error": [Interval(Real, 0, None, closed="left")],
        "cost_unknown": [Interval(Real, 0, None, closed="left"), None],
        "unknown_rate": [Interval(Real, 0, 1, closed="left"), None],
        "calibration": [StrOptions({"cv", "in_sample"}), tuple, list],
    }

    def __init__(
        self,
        classifier: Any = None,
        detector: BaseEstimator | None = None,
        *,
        reject_label: Any = None,
        threshold: str | float = "tpr",
        tpr: float = 0.95,
        cost_rejection: float = 0.2,
        cost_error: float = 1.0,
        cost_unknown: float | None = None,
        unknown_rate: float | None = None,
        calibration: Any = "cv",
    ) -> None:
        self.classifier = classifier
        self.detector = detector
        self.reject_label = reject_label
        self.threshold = threshold
        self.tpr = tpr
        self.cost_rejection = cost_rejection
        self.cost_error = cost_error
        self.cost_unknown = cost_unknown
        self.unknown_rate = unknown_rate
        self.calibration = calibration

    def fit(self, X: Any, y: ArrayLike, **params: Any) -> Self:
        """Fit classifier and detector on the pictures of known classes, and set the threshold.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d), or sequence of n pictures
            What the members take.
        y : array-like of shape (n,)
            Labels; `reject_label`, where one is given, for pictures of unknown classes.
        **params : dict
            ``sample_weight``; with metadata routing enabled, whatever the members request.

        %(self)s

        Raises
        ------
        ValueError
            If `reject_label` is of another kind than y or a class of the classifier, a class has too few pictures for
            folds, `calibration` holds other labels, the detector gives scores that are not finite, or `unknown_rate` is
            given and no picture of an unknown class.
        TypeError
            If `classifier` is none, or has no ``score_samples`` and `detector` none to read.
        """
        check_parameters(self)
        forget_fit(self)
        y = check_target(self, y)
        check_consistent_length(X, y)
        if issparse(X):
            X = X.tocsr()  # of the formats that rows can be taken from
        reject_label = self._chosen_label(y)
        known = y != reject_label
        _check_known(y, known, reject_label, params.get("sample_weight"))
        fit_params = self._routed(params)
        X_known, y_known = (X, y) if known.all() else (take_rows(X, np.flatnonzero(known)), y[known])
        if not known.all():
            fit_params = {of: _check_method_params(X, given, np.flatnonzero(known)) for of, given in fit_params.items()}
        members = self._fit_members(X_known, y_known, fit_params)
        self._check_against_classes(reject_label, members.classifier)
        threshold = self._threshold(members, X, y, reject_label, fit_params)
        self.classifier_, self.detector_ = members
        self.classes_ = self.classifier_.classes_
        copy_feature_names(self, [self.classifier_])
        self.reject_label_ = reject_label
        self.threshold_ = threshold
        return self

    def predict(self, X: Any) -> NDArray:
        """The class of each picture, or `reject_label_`.

        Parameters
        ----------
        X : object
            Pictures, as `fit` takes them.

        Returns
        -------
        ndarray of shape (n,)
        """
        labels = self.predict_class(X)
        answers = np.concatenate([labels, np.array([self.reject_label_])])  # of a type that holds both
        answers[:-1][~self.is_known(X)] = self.reject_label_
        return answers[:-1]

    def predict_class(self, X: Any) -> NDArray:
        """Label of each picture, whether it would be refused or not.

        Parameters
        ----------
        X : object
            Pictures, as `fit` takes them.

        Returns
        -------
        ndarray of shape (n,)
            Of `classes_`, never `reject_label_`.
        """
        check_is_fitted(self)
        return np.asarray(self.classifier_.predict(X))

    def is_known(self, X: Any) -> NDArray:
        """Whether each picture is answered, ``score_samples(X) >= threshold_``.

        Parameters
        ----------
        X : object
            Pictures, as `fit` takes them.

        Returns
        -------
        ndarray of shape (n,), bool
        """
        return self.score_samples(X) >= self.threshold_

    def score_samples(self, X: Any) -> NDArray:
        """How much each picture looks like one of a known class, to the detector.

        Parameters
        ----------
        X : object
            Pictures, as `fit` takes them.

        Returns
        -------
        ndarray of shape (n,), float64
            Larger = more in-distribution.
        """
        check_is_fitted(self)
        return _scores(self.detector_, X)

    def as_outlier_detector(self) -> OutlierView:
        """The verdict alone, as an outlier detector.

        Returns
        -------
        OutlierView
            Fitted; its scores are those of `score_samples`, its ``offset_`` is `threshold_`.
        """
        check_is_fitted(self)
        share = 1.0 - self.tpr if self.threshold == "tpr" and 0.5 <= self.tpr < 1.0 else 0.05
        return OutlierView.of_fitted(self, self.threshold_, share)

    @available_if(_classifier_has("predict_proba"))
    def predict_proba(self, X: Any) -> NDArray:
        """Probabilities of the known classes, as if no other existed.

        Parameters
        ----------
        X : object
            Pictures, as `fit` takes them.

        Returns
        -------
        ndarray of shape (n, K)
            Columns in the order of `classes_`.
        """
        check_is_fitted(self)
        return self.classifier_.predict_proba(X)

    @available_if(_classifier_has("decision_function"))
    def decision_function(self, X: Any) -> NDArray:
        """Confidence scores of the known classes, in scikit-learn's shape.

        Parameters
        ----------
        X : object
            Pictures, as `fit` takes them.

        Returns
        -------
        ndarray of shape (n, K), or (n,) for two classes
        """
        check_is_fitted(self)
        return self.classifier_.decision_function(X)

    @available_if(_classifier_has("logits"))
    def logits(self, X: Any) -> NDArray:
        """Logits of the known classes.

        Parameters
        ----------
        X : object
            Pictures, as `fit` takes them.

        Returns
        -------
        ndarray of shape (n, K)
            Also for two classes.
        """
        check_is_fitted(self)
        return self.classifier_.logits(X)

    def get_metadata_routing(self) -> MetadataRouter:
        """Metadata routing of this object.

        Returns
        -------
        MetadataRouter
            `fit` hands metadata to that of the classifier and of the detector.
        """
        mapping = MethodMapping().add(caller="fit", callee="fit")
        router = MetadataRouter(owner=self).add(classifier=nested_classifier(self.classifier), method_mapping=mapping)
        return router if self.detector is None else router.add(detector=self.detector, method_mapping=mapping)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # a detector that is given the classifier takes what that takes
        own = getattr(self.detector, "classifier", self.detector)
        members = [self.detector] if own is not None and hasattr(self.detector, "__sklearn_tags__") else []
        if self.classifier is None or not hasattr(self.classifier, "fit"):
            tags.input_tags.three_d_array = True
        elif hasattr(self.classifier, "__sklearn_tags__"):
            tags.classifier_tags = deepcopy(get_tags(self.classifier).classifier_tags)
            members.append(self.classifier)
        return copy_input_tags(tags, members)

    def _chosen_label(self, y: NDArray) -> Any:
        """`reject_label` of the kind of y."""
        kind = _kind(y)
        if kind == "booleans":
            raise ValueError("y holds booleans, which leave no third label to refuse with; use numbers or strings.")
        label = self.reject_label
        if label is not None:
            if _kind(np.array([label])) != kind:
                fitting = "'unknown'" if kind == "strings" else "-1"
                raise ValueError(f"reject_label={label!r} does not fit y, which holds {kind}; {fitting} would.")
            return label
        if kind == "numbers":
            return min(-1, math.floor(y.min().item()) - 1)  # of Python: large integers are no floats of NumPy
        label = "unknown"
        while label in y:
            label += "_"
        return label

    def _check_against_classes(self, label: Any, classifier: Any) -> None:
        if label in np.asarray(classifier.classes_).tolist():
            raise ValueError(
                f"reject_label={label!r} is a class of {type(classifier).__name__}; choose a label that is none of "
                f"{np.asarray(classifier.classes_).tolist()[:5]}."
            )

    def _fit_members(self, X: Any, y: NDArray, fit_params: dict[str, dict[str, Any]]) -> _Members:
        classifier = clone(nested_classifier(self.classifier)).fit(X, y, **fit_params["classifier"])
        if self.detector is None and hasattr(classifier, "score_samples"):
            return _Members(classifier, classifier)
        detector = MSPDetector() if self.detector is None else clone(self.detector)
        share_classifier(detector, classifier)
        return _Members(classifier, detector.fit(X, y, **fit_params["detector"]))

    def _threshold(
        self, members: _Members, X: Any, y: NDArray, reject_label: Any, fit_params: dict[str, dict[str, Any]]
    ) -> float:
        if not isinstance(self.threshold, str):
            return float(self.threshold)
        if self.threshold == "tpr" and self.tpr in (0.0, 1.0):
            return np.inf if self.tpr == 0.0 else -np.inf
        if isinstance(self.calibration, str):
            answered = self._answered_own(members, X, y, y != reject_label, fit_params)
        else:
            answered = self._answered_others(members, reject_label)
        if self.threshold == "tpr":
            return float(np.quantile(answered.scores[answered.known], 1.0 - self.tpr))
        return cheapest_threshold(answered.scores, *self._costs(answered))

    def _answered_own(
        self, members: _Members, X: Any, y: NDArray, known: NDArray, fit_params: dict[str, dict[str, Any]]
    ) -> _Answered:
        """Scores and answers of the pictures of `fit`."""
        places, others = np.flatnonzero(known), np.flatnonzero(~known)
        scores, right = np.zeros(len(y)), np.zeros(len(y), dtype=bool)

        def answer(judges: _Members, chosen: NDArray, unknown: NDArray) -> None:
            scores[chosen], right[chosen] = judges.answer(take_rows(X, chosen), y[chosen])
            if self.threshold == "cost" and len(unknown):
                scores[unknown] = _scores(judges.detector, take_rows(X, unknown))

        if self.calibration == "in_sample":
            answer(members, places, others)
            return _Answered(scores, right, known)
        splits = folds(len(places), y[places])
        for i, (train, test) in enumerate(splits):
            own = {of: _check_method_params(places, given, train) for of, given in fit_params.items()}
            # members of a fold have seen less: all scores come from such
            fold = self._fit_members(take_rows(X, places[train]), y[places[train]], own)
            answer(fold, places[test], others[i :: len(splits)])
        return _Answered(scores, right, known)

    def _answered_others(self, members: _Members, reject_label: Any) -> _Answered:
        """Scores and answers of the pictures that `calibration` holds."""
        if len(self.calibration) != 2:
            raise ValueError(f"calibration holds {len(self.calibration)} things; (X, y) are two.")
        X, y = self.calibration
        y = check_target(self, y)
        check_consistent_length(X, y)
        classes = np.asarray(members.classifier.classes_)
        known = np.isin(y, classes)
        strange = np.unique(y[~known & (y != reject_label)]).tolist()
        if strange:
            raise ValueError(
                f"calibration=(X, y) holds the labels {strange[:5]}, which are neither classes of the classifier, "
                f"{classes.tolist()[:5]}, nor reject_label={reject_label!r}."
            )
        if not known.any():
            raise ValueError("calibration=(X, y) holds no picture of a known class.")
        return _Answered(*members.answer(X, y), known)

    def _costs(self, answered: _Answered) -> tuple[NDArray, NDArray]:
        """What an answer to each picture costs more than a refusal, and how much each picture counts."""
        known = answered.known
        unknown = self.cost_error if self.cost_unknown is None else self.cost_unknown
        of_answer = np.where(known, np.where(answered.right, 0.0, self.cost_error), unknown)
        if self.unknown_rate is None:
            return of_answer - self.cost_rejection, np.ones(len(known))
        if known.all() and self.unknown_rate > 0.0:
            raise ValueError(
                f"unknown_rate={self.unknown_rate:g}, but no picture of an unknown class is given: label some with "
                f"reject_label in y."
            )
        shares = np.where(known, (1.0 - self.unknown_rate) / known.sum(), self.unknown_rate / max(1, (~known).sum()))
        return of_answer - self.cost_rejection, shares

    def _routed(self, params: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """What the ``fit`` of each member gets of the metadata given to ours."""
        params = {name: value for name, value in params.items() if value is not None}
        if get_config()["enable_metadata_routing"]:
            routed = process_routing(self, "fit", **params)
            return {"classifier": routed.classifier.fit, "detector": routed.get("detector", {"fit": {}})["fit"]}
        check_unrouted(self, params)
        classifier = nested_classifier(self.classifier)
        if params and not has_fit_parameter(classifier, "sample_weight"):
            raise ValueError(f"{type(classifier).__name__} takes no sample_weight.")
        takes = self.detector is not None and has_fit_parameter(self.detector, "sample_weight")
        return {"classifier": params, "detector": params if takes else {}}


class _Members(NamedTuple):
    classifier: Any
    detector: Any

    def answer(self, X: Any, y: NDArray) -> tuple[NDArray, NDArray]:
        """Score of each picture, and whether the classifier is right."""
        return _scores(self.detector, X), np.asarray(self.classifier.predict(X)) == y


class _Answered(NamedTuple):
    """Pictures that set the threshold."""

    scores: NDArray  # (n,)
    right: NDArray  # (n,) whether the classifier names the class
    known: NDArray  # (n,) whether it can


def share_classifier(detector: Any, classifier: Any) -> None:
    """Give a fitted classifier to `detector` and to whatever it holds, wherever a parameter `classifier` is None."""
    for name, value in detector.get_params(deep=True).items():
        if value is None and (name == "classifier" or name.endswith("__classifier")):
            detector.set_params(**{name: FrozenEstimator(classifier)})


def cheapest_threshold(scores: NDArray, excess: NDArray, shares: NDArray) -> float:
    """The threshold t that makes ``sum_i shares_i excess_i [scores_i >= t]`` smallest.

    Parameters
    ----------
    scores : ndarray of shape (n,)
    excess : ndarray of shape (n,)
        What an answer to each picture costs more than a refusal.
    shares : ndarray of shape (n,)
        How much each picture counts.

    Returns
    -------
    float
        Of several minima the lowest: halfway between two scores, -inf where all are answered, inf where none is.
    """
    counted = np.flatnonzero(shares)
    order = counted[np.argsort(-scores[counted], kind="stable")]
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # equal scores share a verdict
    totals = np.append(0.0, np.cumsum((shares * excess)[order])[last])
    # sums of equal costs in another order differ by rounding
    tolerance = 1e-12 * np.abs(shares * excess).sum()
    n_answered = int(np.flatnonzero(totals <= totals.min() + tolerance)[-1])
    if n_answered == len(last):
        return -np.inf
    if n_answered == 0:
        return np.inf
    above, below = ranked[last[n_answered - 1]], ranked[last[n_answered - 1] + 1]
    middle = below + 0.5 * (above - below)
    return float(middle if middle > below else above)


def _scores(detector: Any, X: Any) -> NDArray:
    scores = np.asarray(detector.score_samples(X), dtype=np.float64)
    n = _num_samples(X)
    if scores.shape != (n,):
        raise ValueError(
            f"score_samples of {type(detector).__name__} has shape {scores.shape} for {n} pictures, not ({n},)."
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise ValueError(
            f"{type(detector).__name__} gives {scores[bad[0]]} for X[{bad[0]}] ({bad.size} of {len(scores)} scores are "
            "not finite); a threshold needs numbers."
        )
    return scores


def _check_known(y: NDArray, known: NDArray, reject_label: Any, sample_weight: ArrayLike | None) -> None:
    if not known.any():
        raise ValueError(f"Every row of y is reject_label={reject_label!r}; known classes are needed to fit.")
    weights = check_weights(sample_weight, len(y))
    if weights is not None and len(np.unique(y[known & (weights > 0.0)])) < 2:
        raise ValueError("sample_weight leaves fewer than two known classes.")


def _kind(labels: NDArray) -> str:
    return _KINDS.get(labels.dtype.kind, "numbers")
