"""Every measure as a scorer of fitted estimators, for `cross_validate` and searches."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import MetadataRequest

from skclip.metrics._association import cab_score, swap_rate
from skclip.metrics._calibration import (
    adaptive_calibration_error,
    area_under_risk_coverage,
    brier_score_multiclass,
    confidence_correctness_correlation,
    expected_calibration_error,
    negative_log_likelihood,
    overconfidence_rate,
)
from skclip.metrics._checks import as_weights, check_same_length, check_scores
from skclip.metrics._groups import factor_accuracy, factor_gap, group_accuracy, shape_bias, worst_group_accuracy
from skclip.metrics._ood import detection_error, fpr_at_tpr, ood_aupr, ood_auroc
from skclip.metrics._open_set import oscr_score
from skclip.metrics._retrieval import retrieval_average_precision, retrieval_recall
from skclip.metrics._robustness import (
    effective_robustness,
    mean_corruption_error,
    relative_mean_corruption_error,
    relative_robustness,
)
from skclip.utils._arrays import unit_rows
from skclip.utils._names import check_labels

Measure = Callable[..., float]


class _Recipe(NamedTuple):
    """How one measure is taken of a fitted estimator."""

    measure: Measure  # (estimator, X, y, **options, **metadata) -> float
    sign: int  # -1 for losses: scikit-learn maximises
    options: tuple[str, ...] = ()
    required: tuple[str, ...] = ()  # options without default
    metadata: tuple[str, ...] = ()  # one entry per row, without which there is no score
    extra: tuple[str, ...] = ()  # one entry per row, which may be left out
    weighted: bool = True  # whether sample_weight may be passed


class Scorer:
    """A callable ``scorer(estimator, X, y)``, larger = better; made by `get_scorer`."""

    def __init__(self, name: str, options: Mapping[str, Any]):
        self.name = name
        self.options = dict(options)
        self.requests: dict[str, Any] = dict.fromkeys(_RECIPES[name].metadata, True)

    def __call__(self, estimator: Any, X: Any, y: Any = None, **metadata: Any) -> float:
        recipe = _RECIPES[self.name]
        metadata = {name: value for name, value in metadata.items() if value is not None}
        unknown = [name for name in metadata if name not in _accepted(recipe)]
        if unknown:
            raise TypeError(f"The scorer {self.name!r} takes no {unknown[0]}; it takes {_accepted(recipe) or 'none'}.")
        missing = [name for name in recipe.metadata if name not in metadata]
        if missing:
            raise ValueError(
                f"The scorer {self.name!r} needs {missing[0]}, one entry per row. In cross_validate: "
                "sklearn.set_config(enable_metadata_routing=True), then "
                f"cross_validate(..., params={{{missing[0]!r}: ...}})."
            )
        return recipe.sign * float(recipe.measure(estimator, X, y, **self.options, **metadata))

    def set_score_request(self, **requests: bool | str | None) -> Self:
        """Choose which metadata scikit-learn routes to this scorer, as for its own scorers.

        Parameters
        ----------
        **requests : {True, False, None, str}
            For each of the names that the scorer takes: routed, not routed, an error when passed, or routed under
            another name.

        Returns
        -------
        self
        """
        accepted = _accepted(_RECIPES[self.name])
        unknown = [name for name in requests if name not in accepted]
        if unknown:
            raise TypeError(f"The scorer {self.name!r} takes no {unknown[0]}; it takes {accepted or 'none'}.")
        self.requests.update(requests)
        return self

    def get_metadata_routing(self) -> MetadataRequest:
        """What is asked of scikit-learn's metadata routing.

        Returns
        -------
        sklearn.utils.metadata_routing.MetadataRequest
        """
        request = MetadataRequest(owner=self)
        for name in _accepted(_RECIPES[self.name]):
            request.score.add_request(param=name, alias=self.requests.get(name))
        return request

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"get_scorer({self.name!r}{options})"


def get_scorer(name: str, **options: Any) -> Scorer:
    """A measure of this package as a scorer for `cross_validate`, `GridSearchCV` and the like.

    Losses are negated, as scikit-learn does: "neg_expected_calibration_error" is at most 0.

    Parameters
    ----------
    name : str
        One of `scorer_names`, see Notes.
    **options : object
        Keyword arguments of the measure.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y, **metadata) -> float``, larger = better; it pickles, and
        ``set_score_request(sample_weight=True)`` routes metadata to it as to scikit-learn's own scorers.

    Raises
    ------
    ValueError
        If there is no such scorer, or it needs an option that is missing.
    TypeError
        If it takes no such option.

    See Also
    --------
    scorer_names : All names.

    Notes
    -----
    "neg_expected_calibration_error", "neg_adaptive_calibration_error", "neg_negative_log_likelihood" (the mean log
    probability of the label), "neg_brier_score_multiclass", "neg_overconfidence_rate",
    "confidence_correctness_correlation" and "neg_area_under_risk_coverage" read ``predict_proba`` and ``classes_`` of a
    classifier, so that a fold without some class is no trouble, and take the options of the functions.

    "worst_group_accuracy" and "group_accuracy" (option ``group``, the one whose accuracy is the score) need the
    metadata `groups`; "factor_accuracy" and "neg_factor_gap" (option ``factor``, a column) need `factors`. These
    request their metadata by themselves; enable scikit-learn's metadata routing and pass
    ``cross_validate(..., params={"groups": groups})``.

    "shape_bias", "neg_cab_score" and "neg_swap_rate" compare with a second label of each row: the second of two
    columns of y (shape and texture; own and other attribute), and the metadata `other` where y has one column. Then
    `other` is routed as `groups` is, once requested: ``set_score_request(other=True)``.

    "effective_robustness" (options ``line``, a fitted `RobustnessLine`, and ``X_id, y_id``, on which the accuracy
    without shift is measured, or that number as ``accuracy_id``) and "relative_robustness" (option ``baseline``, a
    fitted classifier that predicts the same rows, or its accuracy as a number) take X and y for the shifted pictures.

    "neg_mean_corruption_error" and "neg_relative_mean_corruption_error" need ``baseline_errors``, ``{corruption: error
    rates of severities 1, 2, ...}``, the latter also ``baseline_clean_error``, and the metadata `corruption` and
    `severity` (0 = clean, which only the latter reads).

    "ood_auroc", "ood_aupr" (options ``positive, interpolation``), "neg_fpr_at_tpr" (options ``tpr, rule, positive``)
    and "neg_detection_error" (options ``tpr, rule, prior``) score pictures by ``score_samples`` where there is one, by
    the largest probability of other classifiers, and by ``decision_function`` of other detectors. With the option
    ``X_out``, X is in distribution and `X_out` is not; without, y tells: 1 is in distribution, -1 is not. "oscr_score"
    needs ``X_out``, and labels of X as y; the labels predicted are those of ``predict_class`` where there is one, of
    ``predict`` of other classifiers.

    "retrieval_recall" (option ``k``) and "retrieval_average_precision": an item is relevant to a query of equal y. The
    items are those that an estimator with ``kneighbors`` was fitted to (with its ``ids_``, or labels), in its own
    order; or the options ``X_items, y_items``, compared by the cosine of what ``transform`` gives.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import cross_validate
    >>> from skclip.metrics import get_scorer
    >>> X, y = np.random.default_rng(0).normal(size=(60, 2)), np.repeat(["cat", "dog", "hen"], 20)
    >>> scoring = {"ece": get_scorer("neg_expected_calibration_error", n_bins=10), "accuracy": "accuracy"}
    >>> sorted(cross_validate(LogisticRegression(), X, y, scoring=scoring))
    ['fit_time', 'score_time', 'test_accuracy', 'test_ece']
    """
    if name not in _RECIPES:
        near = difflib.get_close_matches(str(name), _RECIPES, 3)
        hint = f"Did you mean {', '.join(map(repr, near))}?" if near else f"There are {', '.join(scorer_names())}."
        raise ValueError(f"Unknown scorer {name!r}. {hint}")
    recipe = _RECIPES[name]
    unknown = [option for option in options if option not in recipe.options]
    if unknown:
        raise TypeError(f"The scorer {name!r} has no option {unknown[0]!r}; it has {list(recipe.options) or 'none'}.")
    missing = [option for option in recipe.required if option not in options]
    if missing:
        raise ValueError(
            f"The scorer {name!r} needs the option {missing[0]!r}: get_scorer({name!r}, {missing[0]}=...)."
        )
    return Scorer(name, options)


def scorer_names() -> list[str]:
    """Names that `get_scorer` knows.

    Returns
    -------
    list of str

    Examples
    --------
    >>> from skclip.metrics import scorer_names
    >>> "neg_expected_calibration_error" in scorer_names()
    True
    """
    return sorted(_RECIPES)


# -- what a fitted estimator says ---------------------------------------------------------------------------------


def _reach(estimator: Any, X: Any, method: str) -> tuple[Any, Any]:
    """The estimator that has `method`, inside pipelines, searches and frozen ones, and X as it arrives there."""
    if hasattr(estimator, method):
        return estimator, X
    if isinstance(estimator, FrozenEstimator):
        return _reach(estimator.estimator, X, method)
    if isinstance(estimator, Pipeline):
        return _reach(estimator[-1], estimator[:-1].transform(X) if len(estimator) > 1 else X, method)
    if hasattr(estimator, "best_estimator_"):
        return _reach(estimator.best_estimator_, X, method)
    raise TypeError(f"{type(estimator).__name__} has no {method}, which this score needs.")


def _probabilities(estimator: Any, X: Any) -> tuple[NDArray, NDArray]:
    """Probabilities of the classes, and their labels."""
    if not hasattr(estimator, "predict_proba"):
        raise TypeError(f"{type(estimator).__name__} has no predict_proba, which this score needs.")
    return np.asarray(estimator.predict_proba(X)), np.asarray(estimator.classes_)


def _accuracy(estimator: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
    right = check_labels(y) == np.asarray(estimator.predict(X))
    return float(np.average(right, weights=as_weights(sample_weight, len(right))))


# -- measures of an estimator -------------------------------------------------------------------------------------


def _of_probabilities(metric: Measure) -> Measure:
    def measure(estimator: Any, X: Any, y: ArrayLike, **options: Any) -> float:
        prob, labels = _probabilities(estimator, X)
        return metric(y, prob, labels=labels, **options)

    return measure


def _of_predictions(metric: Measure) -> Measure:
    def measure(estimator: Any, X: Any, y: ArrayLike, **metadata: Any) -> float:
        return metric(y, estimator.predict(X), **metadata)

    return measure


def _accuracy_of_group(y: ArrayLike, pred: ArrayLike, *, group: Any, groups: ArrayLike, **weights: Any) -> float:
    accuracies = group_accuracy(y, pred, groups, **weights)
    if group not in accuracies:
        raise ValueError(f"No row is of the group {group!r}; there are {list(accuracies)}.")
    return accuracies[group]


def _of_factor(metric: Callable[..., NDArray]) -> Measure:
    def one_factor(y: ArrayLike, pred: ArrayLike, *, factor: int = 0, factors: ArrayLike, **weights: Any) -> float:
        tags = np.asarray(factors)
        tags = tags[:, None] if tags.ndim == 1 else tags
        if not 0 <= factor < tags.shape[1]:
            raise ValueError(f"factor is {factor!r}, but factors has {tags.shape[1]} columns, 0 and up.")
        return float(metric(y, pred, tags[:, [factor]], **weights)[0])

    return _of_predictions(one_factor)


def _of_two_labels(metric: Measure) -> Measure:
    def measure(estimator: Any, X: Any, y: Any, *, other: ArrayLike | None = None, **weights: Any) -> float:
        own = np.asarray(y)
        if other is None:
            if own.ndim != 2 or own.shape[1] != 2:
                raise ValueError(
                    f"Two labels of each row are compared: pass y with two columns, got shape {own.shape}, or route "
                    "the second as the metadata `other`."
                )
            own, other = own[:, 0], own[:, 1]
        return metric(own, other, np.asarray(estimator.predict(X)), **weights)

    return measure


def _effective_robustness(
    estimator: Any,
    X: Any,
    y: ArrayLike,
    *,
    line: Any,
    X_id: Any = None,
    y_id: ArrayLike | None = None,
    accuracy_id: float | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    if accuracy_id is None:
        if X_id is None or y_id is None:
            raise ValueError("Effective robustness needs in-distribution pictures X_id and y_id, or accuracy_id.")
        accuracy_id = _accuracy(estimator, X_id, y_id)
    return effective_robustness(accuracy_id, _accuracy(estimator, X, y, sample_weight), line)


def _relative_robustness(
    estimator: Any, X: Any, y: ArrayLike, *, baseline: Any, sample_weight: ArrayLike | None = None
) -> float:
    if hasattr(baseline, "predict"):
        baseline = _accuracy(baseline, X, y, sample_weight)
    return relative_robustness(_accuracy(estimator, X, y, sample_weight), baseline)


def _corruption_errors(
    estimator: Any,
    X: Any,
    y: ArrayLike,
    baseline_errors: Mapping[Any, ArrayLike],
    corruption: ArrayLike,
    severity: ArrayLike,
    sample_weight: ArrayLike | None,
) -> tuple[NDArray, NDArray, float]:
    """Errors by corruption and severity, those of the baseline, and the error of severity 0 (NaN without rows)."""
    wrong = check_labels(y) != np.asarray(estimator.predict(X))
    kinds, levels = check_labels(corruption, name="corruption"), check_scores("severity", severity)
    check_same_length(y=wrong, corruption=kinds, severity=levels)
    weights = as_weights(sample_weight, len(wrong))
    rates = [check_scores(f"baseline_errors[{kind!r}]", values) for kind, values in baseline_errors.items()]
    if len({len(values) for values in rates}) > 1:
        raise ValueError("baseline_errors needs as many severities for every corruption.")
    base = np.stack(rates)

    def error(rows: NDArray) -> float:
        return float(np.average(wrong[rows], weights=weights[rows])) if weights[rows].sum() > 0 else float("nan")

    errors = np.empty_like(base)
    for c, kind in enumerate(baseline_errors):
        for s in range(base.shape[1]):
            errors[c, s] = error((kinds == kind) & (levels == s + 1))
            if np.isnan(errors[c, s]):
                raise ValueError(f"No row is of corruption {kind!r} at severity {s + 1}, which baseline_errors has.")
    return errors, base, error(levels == 0)


def _mean_corruption_error(
    estimator: Any,
    X: Any,
    y: ArrayLike,
    *,
    baseline_errors: Mapping[Any, ArrayLike],
    corruption: ArrayLike,
    severity: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> float:
    errors, base, _ = _corruption_errors(estimator, X, y, baseline_errors, corruption, severity, sample_weight)
    return mean_corruption_error(errors, base)


def _relative_mean_corruption_error(
    estimator: Any,
    X: Any,
    y: ArrayLike,
    *,
    baseline_errors: Mapping[Any, ArrayLike],
    baseline_clean_error: float,
    corruption: ArrayLike,
    severity: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> float:
    errors, base, clean = _corruption_errors(estimator, X, y, baseline_errors, corruption, severity, sample_weight)
    if np.isnan(clean):
        raise ValueError("No row has severity 0, so the error without corruption cannot be measured.")
    return relative_mean_corruption_error(errors, base, clean_error=clean, baseline_clean_error=baseline_clean_error)


def _of_ood_scores(metric: Measure) -> Measure:
    def measure(estimator: Any, X: Any, y: ArrayLike, *, X_out: Any = None, **options: Any) -> float:
        scores = in_distribution_scores(estimator, X)
        if X_out is not None:
            return metric(scores, in_distribution_scores(estimator, X_out), **options)
        return metric(*split_by_sign(scores, y), **options)

    return measure


def split_by_sign(scores: NDArray, y: ArrayLike) -> tuple[NDArray, NDArray]:
    """Scores of the pictures that y calls 1, in distribution, and of those that it calls -1.

    Raises
    ------
    ValueError
        If y holds anything else, or not both, or has another length.
    """
    signs = np.asarray(y)
    if signs.dtype.kind not in "if" or set(np.unique(signs).tolist()) != {-1, 1}:
        raise ValueError(
            "Without X_out, y must hold 1 (in distribution) and -1 (not), and both; got "
            f"{np.unique(signs)[:5].tolist()}."
        )
    check_same_length(X=scores, y=signs)
    return scores[signs == 1], scores[signs == -1]


def _oscr_score(estimator: Any, X: Any, y: ArrayLike, *, X_out: Any) -> float:
    predicted = predicted_classes(estimator, X)
    if predicted is None:
        raise TypeError(f"{type(estimator).__name__} predicts no class, which this score needs.")
    return oscr_score(y, predicted, in_distribution_scores(estimator, X), in_distribution_scores(estimator, X_out))


def in_distribution_scores(estimator: Any, X: Any) -> NDArray:
    """Scores of any fitted detector or classifier, larger = more in-distribution.

    Raises
    ------
    TypeError
        If there are none: a classifier's decision function tells classes, not the unknown.
    """
    if hasattr(estimator, "score_samples"):
        return np.asarray(estimator.score_samples(X))
    if is_classifier(estimator):
        return _probabilities(estimator, X)[0].max(axis=1)
    if hasattr(estimator, "decision_function"):
        return np.asarray(estimator.decision_function(X))
    name = type(innermost(estimator)).__name__
    raise TypeError(f"{name} has neither score_samples nor decision_function, which this score needs.")


def accepting_threshold(estimator: Any) -> float | None:
    """Score of `in_distribution_scores` from which a fitted estimator accepts a picture; None where it has none."""
    if hasattr(estimator, "score_samples"):
        inner = innermost(estimator)
        offset = getattr(inner, "offset_", getattr(inner, "threshold_", None))
        # OneClassSVM keeps it in an array
        return None if offset is None else float(np.asarray(offset).item())
    return None if is_classifier(estimator) else 0.0


def predicted_classes(estimator: Any, X: Any) -> NDArray | None:
    """Labels that a fitted estimator predicts, whether it refuses the pictures or not; None where it knows none."""
    if hasattr(innermost(estimator), "predict_class"):
        detector, rows = _reach(estimator, X, "predict_class")
        return np.asarray(detector.predict_class(rows))
    return np.asarray(estimator.predict(X)) if is_classifier(estimator) else None


def innermost(estimator: Any) -> Any:
    """The estimator inside pipelines (their last step), searches and frozen ones."""
    if isinstance(estimator, FrozenEstimator):
        return innermost(estimator.estimator)
    if isinstance(estimator, Pipeline):
        return innermost(estimator[-1])
    return innermost(estimator.best_estimator_) if hasattr(estimator, "best_estimator_") else estimator


def _retrieval_recall(
    estimator: Any,
    X: Any,
    y: ArrayLike,
    *,
    k: int = 1,
    X_items: Any = None,
    y_items: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    wanted = check_labels(y)
    if X_items is not None:
        similarity, belongs = _cosines_with_items(estimator, X, wanted, X_items, y_items)
        return retrieval_recall(similarity, belongs, k=k, sample_weight=sample_weight)
    searcher, rows = _reach(estimator, X, "kneighbors")
    ids = _ids_of_items(searcher, wanted)
    _, nearest = searcher.kneighbors(rows, n_neighbors=min(k, len(ids)))
    found = (ids[nearest] == wanted[:, None]).any(axis=1)
    return float(np.average(found, weights=as_weights(sample_weight, len(found))))


def _retrieval_average_precision(
    estimator: Any,
    X: Any,
    y: ArrayLike,
    *,
    X_items: Any = None,
    y_items: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    wanted = check_labels(y)
    if X_items is not None:
        similarity, belongs = _cosines_with_items(estimator, X, wanted, X_items, y_items)
        return retrieval_average_precision(similarity, belongs, sample_weight=sample_weight)
    searcher, rows = _reach(estimator, X, "kneighbors")
    ids = _ids_of_items(searcher, wanted)
    _, order = searcher.kneighbors(rows, n_neighbors=len(ids))
    descending = np.broadcast_to(-np.arange(float(len(ids))), order.shape)
    return retrieval_average_precision(descending, ids[order] == wanted[:, None], sample_weight=sample_weight)


def _ids_of_items(searcher: Any, wanted: NDArray) -> NDArray:
    """What y of `fit` said of the rows that are searched, each of `wanted` among them."""
    if getattr(searcher, "ids_", None) is not None:
        ids = np.asarray(searcher.ids_)
    elif hasattr(searcher, "codes_"):
        ids = np.asarray(searcher.classes_)[searcher.codes_]
    else:
        raise TypeError(
            f"{type(searcher).__name__} does not tell the ids of its rows (ids_, or classes_ and codes_); pass the "
            "items as the options X_items and y_items."
        )
    absent = np.flatnonzero(~np.isin(wanted, ids))
    if absent.size:
        raise ValueError(f"y[{absent[0]}] is {wanted[absent[0]].item()!r}, the id of no item: nothing could be found.")
    return ids


def _cosines_with_items(
    estimator: Any, X: Any, wanted: NDArray, X_items: Any, y_items: ArrayLike | None
) -> tuple[NDArray, NDArray]:
    """Cosines of queries and items after ``transform``, and which belong together."""
    if y_items is None:
        raise ValueError("X_items needs y_items, one id per item.")
    ids = check_labels(y_items, name="y_items")
    rows = [unit_rows(check_scores("transform(X)", estimator.transform(part), ndim=2)) for part in (X, X_items)]
    check_same_length(X_items=rows[1], y_items=ids)
    return rows[0] @ rows[1].T, wanted[:, None] == ids


def _accepted(recipe: _Recipe) -> tuple[str, ...]:
    """Names of the metadata that a scorer takes."""
    return (*recipe.metadata, *recipe.extra, *(("sample_weight",) if recipe.weighted else ()))


_RETRIEVAL = ("X_items", "y_items")
_CORRUPTION = ("corruption", "severity")

_RECIPES: dict[str, _Recipe] = {
    "neg_expected_calibration_error": _Recipe(
        _of_probabilities(expected_calibration_error), -1, options=("n_bins", "strategy", "norm")
    ),
    "neg_adaptive_calibration_error": _Recipe(_of_probabilities(adaptive_calibration_error), -1, options=("n_bins",)),
    "neg_negative_log_likelihood": _Recipe(_of_probabilities(negative_log_likelihood), -1),
    "neg_brier_score_multiclass": _Recipe(_of_probabilities(brier_score_multiclass), -1),
    "neg_overconfidence_rate": _Recipe(_of_probabilities(overconfidence_rate), -1, options=("threshold",)),
    "confidence_correctness_correlation": _Recipe(_of_probabilities(confidence_correctness_correlation), 1),
    "neg_area_under_risk_coverage": _Recipe(_of_probabilities(area_under_risk_coverage), -1),
    "group_accuracy": _Recipe(
        _of_predictions(_accuracy_of_group), 1, options=("group",), required=("group",), metadata=("groups",)
    ),
    "worst_group_accuracy": _Recipe(_of_predictions(worst_group_accuracy), 1, metadata=("groups",)),
    "factor_accuracy": _Recipe(_of_factor(factor_accuracy), 1, options=("factor",), metadata=("factors",)),
    "neg_factor_gap": _Recipe(_of_factor(factor_gap), -1, options=("factor",), metadata=("factors",)),
    "shape_bias": _Recipe(_of_two_labels(shape_bias), 1, extra=("other",)),
    "neg_cab_score": _Recipe(_of_two_labels(cab_score), -1, extra=("other",)),
    "neg_swap_rate": _Recipe(_of_two_labels(swap_rate), -1, extra=("other",)),
    "effective_robustness": _Recipe(
        _effective_robustness, 1, options=("line", "X_id", "y_id", "accuracy_id"), required=("line",)
    ),
    "relative_robustness": _Recipe(_relative_robustness, 1, options=("baseline",), required=("baseline",)),
    "neg_mean_corruption_error": _Recipe(
        _mean_corruption_error, -1, options=("baseline_errors",), required=("baseline_errors",), metadata=_CORRUPTION
    ),
    "neg_relative_mean_corruption_error": _Recipe(
        _relative_mean_corruption_error,
        -1,
        options=("baseline_errors", "baseline_clean_error"),
        required=("baseline_errors", "baseline_clean_error"),
        metadata=_CORRUPTION,
    ),
    "ood_auroc": _Recipe(_of_ood_scores(ood_auroc), 1, options=("X_out",), weighted=False),
    "ood_aupr": _Recipe(_of_ood_scores(ood_aupr), 1, options=("X_out", "positive", "interpolation"), weighted=False),
    "neg_fpr_at_tpr": _Recipe(
        _of_ood_scores(fpr_at_tpr), -1, options=("X_out", "tpr", "rule", "positive"), weighted=False
    ),
    "neg_detection_error": _Recipe(
        _of_ood_scores(detection_error), -1, options=("X_out", "tpr", "rule", "prior"), weighted=False
    ),
    "oscr_score": _Recipe(_oscr_score, 1, options=("X_out",), required=("X_out",), weighted=False),
    "retrieval_recall": _Recipe(_retrieval_recall, 1, options=("k", *_RETRIEVAL)),
    "retrieval_average_precision": _Recipe(_retrieval_average_precision, 1, options=_RETRIEVAL),
}
